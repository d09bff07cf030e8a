"""Batches of one degree may run beside each other; another degree waits until they are over.

The live weights belong to one degree at a time. This is the one place where they are switched, and
it does so only while no batch is running, so that no batch can mix weights of two degrees.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.clock import Clock


class DegreeGate:
    """Lets batches in, and switches the weights between them.

    Args:
        switch: makes the live weights those of a degree, or changes nothing and raises.
        r: the degree that they have at first.
        clock: measures the switch.
    """

    def __init__(self, switch: Callable[[int], None], r: int, clock: Clock) -> None:
        self._switch = switch
        self._r = r
        self._clock = clock
        self._running = 0
        self._over = threading.Condition()

    @contextmanager
    def at(self, r: int) -> Iterator[float]:
        """Run the block while the weights are those of ``r``; yields the seconds of the switch.

        Raises:
            Exception: what ``switch`` raised; the weights are as before.
        """
        with self._over:
            self._over.wait_for(lambda: self._r == r or not self._running)
            started = self._clock()
            if self._r != r:
                self._switch(r)
                self._r = r
            switch_s = self._clock() - started
            self._running += 1
        try:
            yield switch_s
        finally:
            with self._over:
                self._running -= 1
                self._over.notify_all()
