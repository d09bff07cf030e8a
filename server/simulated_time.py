"""Time that is made up: a clock that jumps from one event to the next."""

import heapq
import itertools
import math
from collections.abc import Callable


class SimulatedClock:
    """The time of a simulation, for whatever takes a `Clock`; begins at 0.

    Attributes:
        now: the simulated time in seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the simulated time."""
        return self.now


class Timetable:
    """What happens when: events in order of time, of equal times in order of entry.

    Args:
        clock: stands at an event's time while it happens.
    """

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Let something happen at a time that is not over."""
        heapq.heappush(self._events, (time, next(self._number), event))

    def run_until(self, time: float = math.inf) -> None:
        """Let everything happen that happens before `time`, and stop there."""
        events, clock = self._events, self._clock
        while events and events[0][0] < time:
            clock.now, _, event = heapq.heappop(events)
            event()
        if time < math.inf:
            clock.now = time
