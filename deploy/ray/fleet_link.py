"""A replica's side of `ControlRoom`: it takes what is asked of all, and tells how it is.

The controller of this replica stays what it is on a single server; what is asked of all replicas
is put to it as if its operator had asked it alone.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from deploy.ray.control_room import Order, Overview, Pages, Report
from deploy.ray.wish import Wish
from server.clock import Clock, monotonic
from server.controller import Controller
from server.errors import BadParameter, ServeError
from server.schemas import CompressionQuery

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 5.0
"""The room is asked for no longer than this; it may be on its way to another node."""
TRY_AGAIN_S = 0.5
"""After a call to the room that failed."""


class Room(Protocol):
    """What a replica calls, be the room here or in another process."""

    async def exchange(self, replica: str, wish: Wish, report: Report, ticket: int) -> Order:
        """Say what this replica has, and be told what is asked."""

    async def ask(self, query: CompressionQuery, known: Wish) -> Overview:
        """Ask something of all replicas."""

    async def overview(self) -> Overview:
        """What is asked, and how all are."""

    async def gather(self) -> Pages:
        """All replicas' pages of metrics."""

    async def deliver(self, replica: str, ticket: int, page: bytes) -> None:
        """Hand in this replica's page."""

    async def leave(self, replica: str) -> None:
        """Say that this replica ends."""


class FleetUnreachable(ServeError):
    """The place where wishes are kept does not answer."""

    status = 503
    type = "/problems/fleet-unreachable"
    title = "Fleet unreachable"

    def __init__(self) -> None:
        super().__init__(
            "The deployment that speaks to all replicas does not answer, so nothing was changed; "
            "Ray starts it anew: try again shortly.",
            headers={"Retry-After": "2"},
        )


class FleetLink:
    """What one replica knows of all, and how it keeps up.

    Args:
        me: the replica's id.
        room: where all meet.
        controller: this replica's; called once it is warm.
        page: this replica's metrics.
        clock: monotonic seconds.

    Attributes:
        me: as given.
    """

    def __init__(
        self,
        me: str,
        room: Room,
        controller: Callable[[], Controller],
        page: Callable[[], bytes],
        clock: Clock = monotonic,
    ) -> None:
        self.me = me
        self._room = room
        self._controller = controller
        self._page = page
        self._clock = clock
        self._wish = Wish()
        self._refused: str | None = None
        self._ticket = 0
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    async def join(self, within_s: float) -> bool:
        """Learn what is asked before the first request; then keep up in the background.

        Returns:
            whether the room answered in time. If it did not, this replica serves by its settings
            until it does.
        """
        try:
            async with asyncio.timeout(within_s):
                wish = (await self._room.overview()).wish
                self._take(wish.shifted(self._clock()))
        except Exception as error:  # whatever Ray raises: it must not keep the replica from serving
            logger.warning("no word from the control room, serving by the settings: %s", error)
        else:
            return True
        finally:
            self._task = asyncio.create_task(self._keep_up())
        return False

    async def close(self) -> None:
        """Tell the room that this replica ends, if it hears it."""
        if self._task is not None:
            self._task.cancel()
        try:
            async with asyncio.timeout(1):
                await self._room.leave(self.me)
        except Exception as error:
            logger.debug("could not take leave: %s", error)

    async def ask(self, query: CompressionQuery) -> Overview:
        """Ask something of all replicas, this one among them.

        Shadow mode without a degree holds the one that this replica has, on all of them.

        Raises:
            BadParameter: the controller refuses it; nothing was changed anywhere.
            FleetUnreachable: nothing was changed.
        """
        _check(self._controller(), query)
        if query.mode == "shadow" and query.r is None:
            query = query.model_copy(update={"r": self._controller().status().r})
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                overview = await self._room.ask(query, self._wish.shifted(-self._clock()))
        except Exception as error:
            logger.warning("cannot reach the control room: %s", error)
            raise FleetUnreachable from error
        self._take(overview.wish.shifted(self._clock()))
        return overview

    async def overview(self) -> Overview | None:
        """What is asked of all and how they are; None: nobody answers."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self._room.overview()
        except Exception as error:
            logger.warning("cannot reach the control room: %s", error)
            return None

    async def gather(self) -> Pages:
        """All replicas' metrics.

        Raises:
            FleetUnreachable: nobody answers.
        """
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self._room.gather()
        except Exception as error:
            logger.warning("cannot reach the control room: %s", error)
            raise FleetUnreachable from error

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._exchange()
            except Exception as error:  # the room may be restarting; the next call may go well
                if not self._lost:
                    logger.warning("the control room does not answer: %s", error)
                self._lost = True
                await asyncio.sleep(TRY_AGAIN_S)

    async def _exchange(self) -> None:
        wish = self._wish.shifted(-self._clock())
        order = await self._room.exchange(self.me, wish, self._report(), self._ticket)
        if self._lost:
            logger.info("the control room answers again")
        self._lost = False
        self._take(order.wish.shifted(self._clock()))
        if order.ticket != self._ticket:  # a new room begins to count anew
            self._ticket = order.ticket
            await self._room.deliver(self.me, order.ticket, self._page())

    def _take(self, wish: Wish) -> None:
        """Do what is asked, if it is later than what was asked before."""
        if wish.version <= self._wish.version:
            return
        before, self._wish, self._refused = self._wish, wish, None
        try:
            _put_to(self._controller(), before, wish, self._clock())
        except BadParameter as error:
            self._refused = error.detail
            logger.error("cannot do what is asked of all replicas: %s", error.detail)

    def _report(self) -> Report:
        status = self._controller().status()
        return Report(
            *(self._wish.version, status.mode, status.r, status.min_r, status.max_r),
            refused=self._refused,
        )


def _check(controller: Controller, query: CompressionQuery) -> None:
    """Find out whether a controller would do what is asked.

    Raises:
        BadParameter: it would not.
    """
    if query.r is not None:
        controller.check_degree(query.r)
    if query.min_r is not None or query.max_r is not None:
        before = controller.status()
        controller.bound(query.min_r, query.max_r)
        controller.bound(before.min_r, before.max_r)


def _put_to(controller: Controller, before: Wish, wish: Wish, now: float) -> None:
    """Ask a controller for what a wish changes; what is over ends there by itself.

    Raises:
        BadParameter: it refuses a part, and the parts after it were not asked for.
    """
    wish, before = wish.at(now), before.at(now)
    if (wish.min_r, wish.max_r) != (before.min_r, before.max_r):
        controller.bound(wish.min_r, wish.max_r)
    if (wish.base, wish.shadow, wish.pin) == (before.base, before.shadow, before.pin):
        return
    if wish.base == "auto":
        controller.auto()
    elif wish.shadow is not None:
        controller.shadow(wish.shadow.r, wish.shadow.ttl_s(now))
    if wish.pin is not None:
        controller.pin(wish.pin.r, wish.pin.ttl_s(now))
