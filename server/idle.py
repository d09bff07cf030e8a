"""Work for the time in which no request waits: one short step after the other.

The batcher asks for a step while nothing waits and never during a batch, so each must be short
(at most a quarter of the SLO): a request that comes meanwhile waits for the step to end.
"""

from collections.abc import Sequence
from typing import Protocol


class IdleWork(Protocol):
    """Something that can wait for a quiet moment, such as measuring another degree."""

    async def step(self) -> bool:
        """Do one short unit of work; False where there is nothing to do now."""
        ...


class IdleShift:
    """Several works that take turns, so that none waits for another to run out of work.

    Args:
        works: asked in this order at first; after that the turn goes on from the last one that
            had something to do.
        last: done only where none of them has anything to do; None: nothing.
    """

    def __init__(self, works: Sequence[IdleWork], last: IdleWork | None = None) -> None:
        self._works = tuple(works)
        self._last = last
        self._next = 0

    async def step(self) -> bool:
        """Do one step of the first work, in turn, that has one, or the last; False without any."""
        for _ in self._works:
            work = self._works[self._next]
            self._next = (self._next + 1) % len(self._works)
            if await work.step():
                return True
        return self._last is not None and await self._last.step()
