"""Whether a device has room for another batch: which lanes have nothing to do.

A batch is shared out to all lanes, and they do not end together. Whoever waited for the last one
before the next batch is chosen would leave a lane idle each time, and both of them while the choice
is made and handed over. So the next batch may begin once one lane is free: its other parts queue up
behind what still runs. Where there are several devices, there is room once one of them has it. All
of this lives on the event loop.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress


class Claim:
    """The lanes that one batch has taken and not given back yet."""

    def __init__(self, room: "Room", lanes: int) -> None:
        self._room = room
        self._lanes = lanes
        self._room._take(lanes)

    def give_back(self, lanes: int = 1) -> None:
        """A part is done, so its lane is free; more than were taken are not given back."""
        lanes = min(lanes, self._lanes)
        self._lanes -= lanes
        self._room._take(-lanes)

    def give_back_from_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the event loop give a lane back; a loop that is closed has nobody who waits."""
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self.give_back)

    def end(self) -> None:
        """Give back all that is left."""
        self.give_back(self._lanes)


class Room:
    """Counts lanes that have work.

    Args:
        lanes: how many there are.

    Attributes:
        on_change: called when lanes were taken or given back.
    """

    def __init__(self, lanes: int) -> None:
        self.on_change: Callable[[], None] = _nothing
        self._lanes = lanes
        self._taken = 0

    @property
    def empty(self) -> bool:
        """Whether no lane has work."""
        return self._taken <= 0

    @property
    def taken(self) -> float:
        """Share of the lanes that have work; above 1 where parts of a batch wait for a lane."""
        return self._taken / self._lanes

    @contextmanager
    def claim(self, lanes: int) -> Iterator[Claim]:
        """Take so many lanes for a batch, until each is given back or the block ends."""
        claim = Claim(self, min(lanes, self._lanes))
        try:
            yield claim
        finally:
            claim.end()

    def _take(self, lanes: int) -> None:
        self._taken += lanes
        self.on_change()


class SomeRoom:
    """Whether one of several rooms has a free lane.

    Args:
        rooms: at least one.
    """

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._rooms = rooms
        self._free = asyncio.Event()
        for room in rooms:
            room.on_change = self._look
        self._look()

    def freest(self) -> int:
        """Return the number of the room with the least work; of several the first."""
        taken = [room.taken for room in self._rooms]
        return taken.index(min(taken))

    async def wait(self) -> None:
        """Return once a lane is free."""
        await self._free.wait()

    def _look(self) -> None:
        if any(room.taken < 1 for room in self._rooms):
            self._free.set()
        else:
            self._free.clear()


def _nothing() -> None:
    """Do nothing."""
