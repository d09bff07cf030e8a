"""When the next batch may be chosen while one still computes on a device of its own.

Choosing, handing over and staging a batch takes the host a moment, in which the device would have
nothing to do if it began only when the last batch has ended. Chosen too early, though, a batch
misses whoever comes meanwhile. So the next one begins that moment before the running one is
expected to end: each kind of batch takes about what it took before.
"""

import time
from collections.abc import Callable

from server.clock import Clock, monotonic

HANDOVER_S = 0.001
"""What choosing a batch and waking its thread take, generously."""
WEIGHT = 0.2
"""Of the newest duration in the mean."""
GLANCE_S = 0.0005
"""How often is looked whether the batch has ended already."""

Cell = tuple[int, int]
"""A degree and a number of images."""


class HeadStart:
    """Learns how long batches compute and take to stage.

    Args:
        clock: in seconds.
        sleep: as ``time.sleep``.
    """

    def __init__(
        self, clock: Clock = monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._staging_s = 0.0
        self._computing_s: dict[Cell, float] = {}

    def staged(self, seconds: float) -> None:
        """Learn that staging a batch took so long."""
        self._staging_s += WEIGHT * (seconds - self._staging_s)

    def computed(self, cell: Cell, seconds: float) -> None:
        """Learn that such a batch computed for so long."""
        before = self._computing_s.get(cell, seconds)
        self._computing_s[cell] = before + WEIGHT * (seconds - before)

    def wait(self, cell: Cell, ended: Callable[[], bool]) -> bool:
        """Return when the next batch may be chosen, or when this one has ended.

        Args:
            cell: of the batch that has just begun.
            ended: whether it is over.

        Returns:
            False if such a batch was never timed: then the next one waits for its end.
        """
        expected = self._computing_s.get(cell)
        if expected is None:
            return False
        until = self._clock() + expected - self._staging_s - HANDOVER_S
        while not ended() and (left := until - self._clock()) > 0:
            self._sleep(min(left, GLANCE_S))
        return True
