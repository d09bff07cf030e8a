"""Where what is asked of all replicas is kept, and where they tell how they are.

Each replica calls `exchange` again and again: it says what it has, and is answered as soon as there
is news, or after a while. So a replica that starts learns what is asked before it serves anything,
a change reaches all of them within milliseconds, and the room knows who is alive.

The room may be lost: what was asked lives on in the replicas, and the first of them that comes to
the new room brings it along. Versions tell which of two wishes is the later one. They are moments
of the wall clock, made to rise, so that what is asked of a new room before anybody brought the old
wish is still the later one.

Everything runs on one event loop; there are no locks.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.ray.wish import Wish
from server.clock import Clock, monotonic
from server.schemas import CompressionQuery

EXCHANGE_S = 1.0
"""A replica that has no news waits so long for some."""
GONE_AFTER_S = 3.0
"""Who was not heard of for so long is not there any more; three times what an exchange takes."""
TAKEN_WITHIN_S = 2.0
"""So long is waited for all replicas to have what was asked, or to tell what they know."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica tells of itself.

    Attributes:
        version: of the wish that it has.
        mode: its controller's.
        r: its present degree.
        min_r: the lower bound of its automatic choices.
        max_r: the upper bound.
        refused: why it could not do what that wish asks; None: it does.
    """

    version: int
    mode: str
    r: int
    min_r: int
    max_r: int
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What a replica is told: the wish, relative to now, and which pages of metrics are wanted."""

    wish: Wish
    ticket: int


@dataclass(frozen=True, slots=True)
class Overview:
    """What is asked of all, relative to now, and what each replica that is alive has of it."""

    wish: Wish
    replicas: dict[str, Report]


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of metrics by replica, and how many replicas sent none in time."""

    told: dict[str, bytes]
    missing: int


@dataclass(slots=True)
class _Seen:
    report: Report
    at: float


@dataclass(slots=True)
class _Gathering:
    pages: dict[str, bytes] = field(default_factory=dict)


class ControlRoom:
    """The wish, the replicas, and the pages that are on their way.

    Args:
        clock: monotonic seconds.
        wall_ns: nanoseconds since some moment that all processes know.
    """

    def __init__(self, clock: Clock = monotonic, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._wall_ns = wall_ns
        self._wish = Wish()
        self._seen: dict[str, _Seen] = {}
        self._ticket = 0
        self._gathering: dict[int, _Gathering] = {}
        self._news = asyncio.Event()
        self._heard = asyncio.Event()

    async def exchange(
        self, replica: str, wish: Wish, report: Report, ticket: int, wait_s: float = EXCHANGE_S
    ) -> Order:
        """A replica says what it has, and is told what is asked once that is news to it.

        Args:
            replica: who it is.
            wish: the one that it has, relative to now.
            report: how it is.
            ticket: of the last pages that it was asked for.
            wait_s: so long it waits for news at most.
        """
        self._seen[replica] = _Seen(report, self._clock())
        self._adopt(wish)
        self._heard = _told(self._heard)
        if self._wish.version <= wish.version and self._ticket <= ticket:
            await _wait(self._news, wait_s)
        return Order(self._wish_now().shifted(-self._clock()), self._ticket)

    async def ask(
        self, query: CompressionQuery, known: Wish, within_s: float = TAKEN_WITHIN_S
    ) -> Overview:
        """Ask something of all replicas, and wait until all have heard of it, or for a while.

        Args:
            query: what is asked, found good by the replica that took it.
            known: the wish of that replica, relative to now.
            within_s: so long is waited.
        """
        self._adopt(known)
        version = max(self._wish.version + 1, self._wall_ns())
        self._wish = self._wish.after(query, self._clock(), version)
        self._news = _told(self._news)
        await self._until(
            lambda: all(seen.report.version >= version for seen in self._alive().values()),
            within_s,
        )
        return self.overview()

    def overview(self) -> Overview:
        """What is asked, and how those are who are alive."""
        wish = self._wish_now().shifted(-self._clock())
        return Overview(wish, {name: seen.report for name, seen in self._alive().items()})

    async def gather(self, within_s: float = TAKEN_WITHIN_S) -> Pages:
        """Ask all replicas for their page of metrics."""
        self._ticket += 1
        ticket, asked = self._ticket, _Gathering()
        self._gathering[ticket] = asked
        self._news = _told(self._news)
        try:
            await self._until(lambda: self._alive().keys() <= asked.pages.keys(), within_s)
        finally:
            del self._gathering[ticket]
        return Pages(asked.pages, len(self._alive().keys() - asked.pages.keys()))

    def deliver(self, replica: str, ticket: int, page: bytes) -> None:
        """Take a replica's page, for all who asked for one up to this ticket."""
        for asked, gathering in self._gathering.items():
            if asked <= ticket:
                gathering.pages[replica] = page
        self._heard = _told(self._heard)

    def leave(self, replica: str) -> None:
        """Forget a replica that ends."""
        self._seen.pop(replica, None)
        self._heard = _told(self._heard)

    def _adopt(self, wish: Wish) -> None:
        """Take a wish that somebody brings, if it is later than ours: ours was lost."""
        if wish.version > self._wish.version:
            self._wish = wish.shifted(self._clock())
            self._news = _told(self._news)

    def _wish_now(self) -> Wish:
        self._wish = self._wish.at(self._clock())
        return self._wish

    def _alive(self) -> dict[str, _Seen]:
        oldest = self._clock() - GONE_AFTER_S
        self._seen = {name: seen for name, seen in self._seen.items() if seen.at >= oldest}
        return self._seen

    async def _until(self, met: Callable[[], bool], within_s: float) -> None:
        """Wait until a condition on what was heard is met, or for a while."""
        give_up = self._clock() + within_s
        while not met() and (left_s := give_up - self._clock()) > 0:
            await _wait(self._heard, left_s)


def _told(event: asyncio.Event) -> asyncio.Event:
    """Wake who waits for an event; return the one to wait for from now on."""
    event.set()
    return asyncio.Event()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
