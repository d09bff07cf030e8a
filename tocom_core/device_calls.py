"""Who may speak to the devices: everybody beside each other, or one alone who captures a graph.

In one process only one capture may be under way, and meanwhile no other work should be put on any
device from any thread. Waiting for a mark is no such work.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DeviceCalls:
    """Many at once, or one alone; whoever waits to be alone goes before those who come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._callers = 0
        self._alone = 0  # who is, or waits to be

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Speak to a device beside others; never inside ``alone``, nor the other way round."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._callers += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Speak to a device while nobody else speaks to any."""
        with self._changed:
            self._alone += 1
            self._changed.wait_for(lambda: not self._callers)
            self._callers += 1
        try:
            yield
        finally:
            with self._changed:
                self._alone -= 1
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._callers -= 1
            self._changed.notify_all()


CALLS = DeviceCalls()
"""Those of this process."""
