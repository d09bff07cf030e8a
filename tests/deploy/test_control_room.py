"""The control room and its replicas, in virtual time: who learns what, and what survives whom."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deploy.ray.control_room import GONE_AFTER_S, ControlRoom, Order, Overview, Pages, Report
from deploy.ray.fleet_link import FleetLink, FleetUnreachable
from deploy.ray.wish import Wish
from server.controller import Controller
from server.errors import BadParameter
from server.schemas import CompressionQuery
from tests.server.fake_table import SetTable
from tests.server.fakes import loop_time, run_virtual
from tests.server.test_controller import Wish as WishfulPolicy

PIN = CompressionQuery(r=12)


class Ray:
    """Stands between replicas and the room, which may be lost, and for a while not be there."""

    def __init__(self) -> None:
        self.started = 0
        self.room: ControlRoom | None = None
        self.start_room()

    def start_room(self) -> None:
        """A new one, which knows nothing."""
        self.started += 1
        self.room = ControlRoom(loop_time, lambda: int(1e9 * (1e6 + loop_time())))

    async def exchange(self, replica: str, wish: Wish, report: Report, ticket: int) -> Order:
        """Like the room's; a call ends when the room does."""
        return await self._call(lambda room: room.exchange(replica, wish, report, ticket))

    async def ask(self, query: CompressionQuery, known: Wish) -> Overview:
        """Like the room's."""
        return await self._call(lambda room: room.ask(query, known))

    async def overview(self) -> Overview:
        """Like the room's."""
        return self._there().overview()

    async def gather(self) -> Pages:
        """Like the room's."""
        return await self._call(lambda room: room.gather())

    async def deliver(self, replica: str, ticket: int, page: bytes) -> None:
        """Like the room's."""
        self._there().deliver(replica, ticket, page)

    async def leave(self, replica: str) -> None:
        """Like the room's."""
        self._there().leave(replica)

    def _there(self) -> ControlRoom:
        if self.room is None:
            raise ConnectionError("the actor died")
        return self.room

    async def _call(self, call: Callable[[ControlRoom], Awaitable[Any]]) -> Any:
        room = self._there()
        answer = await call(room)
        if self.room is not room:
            raise ConnectionError("the actor died")
        return answer


class Replica:
    """A controller of its own and its link to the others."""

    def __init__(self, name: str, room: Any, **options: Any) -> None:
        table: Any = SetTable()
        self.controller = Controller(WishfulPolicy(), table, 0, loop_time, slo_s=0.25, **options)
        self.link = FleetLink(
            *(name, room, lambda: self.controller, lambda: f"page of {name}".encode()),
            clock=loop_time,
        )

    @property
    def pinned(self) -> int | None:
        """The degree that is pinned here."""
        status = self.controller.status()
        return status.r if status.mode == "pinned" else None


async def fleet(*names: str) -> tuple[Ray, list[Replica]]:
    """Some replicas that have joined."""
    ray = Ray()
    replicas = [Replica(name, ray) for name in names]
    for replica in replicas:
        assert await replica.link.join(1)
    await asyncio.sleep(0.1)
    return ray, replicas


async def close(*replicas: Replica) -> None:
    """End them."""
    for replica in replicas:
        await replica.link.close()


def test_what_one_is_asked_all_do():
    """And the answer waits until all have it."""

    async def story() -> None:
        _, (one, two, three) = await fleet("one", "two", "three")
        before = loop_time()
        overview = await one.link.ask(PIN)
        assert [one.pinned, two.pinned, three.pinned] == [12, 12, 12]
        assert {r.version for r in overview.replicas.values()} == {overview.wish.version}
        assert overview.replicas.keys() == {"one", "two", "three"}
        assert loop_time() - before < 0.1
        await close(one, two, three)

    run_virtual(story())


def test_who_starts_later_learns_it_before_it_serves():
    """A pin with what is left of its time, and bounds."""

    async def story() -> None:
        ray, (one,) = await fleet("one")
        await one.link.ask(CompressionQuery(max_r=8))
        await one.link.ask(CompressionQuery(r=12, ttl_s=30))
        await asyncio.sleep(10)
        late = Replica("late", ray)
        assert await late.link.join(1)
        status = late.controller.status()
        assert (status.mode, status.r, status.max_r) == ("pinned", 12, 8)
        assert status.pinned_ttl_s == pytest.approx(20)
        await asyncio.sleep(21)
        assert one.pinned is late.pinned is None
        later = Replica("later", ray)
        await later.link.join(1)
        assert later.pinned is None
        await close(one, late, later)

    run_virtual(story())


def test_what_is_asked_survives_the_room():
    """The replicas bring it to the next one, time that has passed included."""

    async def story() -> None:
        ray, (one, two) = await fleet("one", "two")
        await one.link.ask(CompressionQuery(r=12, ttl_s=60))
        ray.room = None
        await asyncio.sleep(5)
        assert one.pinned == two.pinned == 12
        ray.start_room()
        await asyncio.sleep(2)
        late = Replica("late", ray)
        await late.link.join(1)
        assert late.pinned == 12
        assert late.controller.status().pinned_ttl_s == pytest.approx(53)
        await close(one, two, late)

    run_virtual(story())


def test_what_is_asked_of_a_new_room_beats_what_was_asked_of_the_old_one():
    """Even before anybody brought the old wish along."""

    async def story() -> None:
        ray, (one, two) = await fleet("one", "two")
        for r in (4, 8, 12):
            await one.link.ask(CompressionQuery(r=r))
        await asyncio.sleep(0.1)
        ray.start_room()
        stranger = Replica("stranger", ray)  # knows of nothing, as the room does
        await stranger.link.ask(CompressionQuery(r=16))
        await asyncio.sleep(3)
        assert one.pinned == two.pinned == 16
        await close(one, two, stranger)

    run_virtual(story())


def test_a_refused_value_changes_nothing():
    """Neither here nor at the others."""

    async def story() -> None:
        _, (one, two) = await fleet("one", "two")
        await one.link.ask(PIN)
        for query in (CompressionQuery(r=99), CompressionQuery(max_r=99)):
            with pytest.raises(BadParameter):
                await one.link.ask(query)
        overview = await two.link.overview()
        assert overview is not None
        assert overview.wish.held is not None
        assert overview.wish.held.r == 12
        assert (overview.wish.min_r, overview.wish.max_r) == (None, None)
        assert one.pinned == two.pinned == 12
        await close(one, two)

    run_virtual(story())


def test_without_a_room_nothing_is_changed_and_all_go_on():
    """A clear error, and a new attempt works once there is one again."""

    async def story() -> None:
        ray, (one, two) = await fleet("one", "two")
        await one.link.ask(PIN)
        ray.room = None
        with pytest.raises(FleetUnreachable):
            await one.link.ask(CompressionQuery(mode="auto"))
        assert await one.link.overview() is None
        assert one.pinned == two.pinned == 12
        ray.start_room()
        await asyncio.sleep(2)
        await two.link.ask(CompressionQuery(mode="auto"))
        assert {one.pinned, two.pinned} == {None}
        await close(one, two)

    run_virtual(story())


def test_a_replica_that_cannot_do_it_says_so():
    """One with another model, in the middle of a rolling update."""

    async def story() -> None:
        ray, (one,) = await fleet("one")
        floor = Replica("floor", ray, max_r=4)
        await floor.link.join(1)
        await asyncio.sleep(0.1)
        overview = await one.link.ask(CompressionQuery(min_r=8))
        assert overview.replicas["one"].refused is None
        assert "min_r=8" in (overview.replicas["floor"].refused or "")
        assert overview.replicas["floor"].min_r == 0
        await close(one, floor)

    run_virtual(story())


def test_shadow_mode_holds_the_same_degree_everywhere():
    """That of the replica that was asked, where none is named."""

    async def story() -> None:
        ray, (one, two) = await fleet("one", "two")
        one.controller.start_at(5)
        await one.link.ask(CompressionQuery(mode="shadow"))
        late = Replica("late", ray)
        await late.link.join(1)
        for replica in (one, two, late):
            status = replica.controller.status()
            assert (status.mode, status.r) == ("shadow", 5)
        await close(one, two, late)

    run_virtual(story())


def test_who_died_is_forgotten():
    """It is waited for, but not for long, and told of no more."""

    async def story() -> None:
        _, (one, two) = await fleet("one", "two")
        assert two.link._task is not None
        two.link._task.cancel()
        overview = await one.link.ask(PIN)
        assert overview.replicas["two"].version == 0
        await asyncio.sleep(GONE_AFTER_S)
        overview = await one.link.ask(CompressionQuery(r=4))
        assert overview.replicas.keys() == {"one"}
        await close(one)

    run_virtual(story())


def test_all_hand_in_their_pages():
    """Those who are alive; of the others it is said how many are missing."""

    async def story() -> None:
        ray, (one, two) = await fleet("one", "two")
        first, second = await asyncio.gather(one.link.gather(), two.link.gather())
        expected = {"one": b"page of one", "two": b"page of two"}
        assert first.told == second.told == expected
        assert first.missing == 0
        assert two.link._task is not None
        two.link._task.cancel()
        pages = await one.link.gather()
        assert (pages.told, pages.missing) == ({"one": b"page of one"}, 1)
        ray.start_room()  # counts its tickets anew
        await asyncio.sleep(2)
        assert (await one.link.gather()).told == {"one": b"page of one"}
        await close(one)

    run_virtual(story())
