"""The room: how many lanes have work, and who may begin."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.room import Room, SomeRoom
from tests.server.fakes import run_virtual


def test_room_once_a_lane_is_free() -> None:
    """A batch on both lanes leaves no room; its first finished part makes some."""

    async def main() -> None:
        room = Room(2)
        with room.claim(2) as claim:
            waiting = asyncio.create_task(SomeRoom([room]).wait())
            await asyncio.sleep(1)
            assert not waiting.done() and not room.empty
            claim.give_back()
            await asyncio.sleep(1)
            assert waiting.done() and not room.empty
        assert room.empty

    run_virtual(main())


def test_what_queues_up_behind_takes_the_lane() -> None:
    """The part that a free lane goes on with leaves no room again."""

    async def main() -> None:
        room = Room(2)
        with room.claim(2) as first, room.claim(2):
            first.give_back(2)
            waiting = asyncio.create_task(SomeRoom([room]).wait())
            await asyncio.sleep(1)
            assert not waiting.done()
            waiting.cancel()

    run_virtual(main())


def test_a_failed_batch_gives_everything_back() -> None:
    """However it ends."""
    room = Room(3)
    with pytest.raises(RuntimeError), room.claim(3):
        raise RuntimeError("broken")
    assert room.empty


@given(parts=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=20))
def test_nothing_is_given_back_twice(parts: list[tuple[int, int]]) -> None:
    """More finished parts than lanes (halves of a batch) make no room that is not there."""
    room = Room(4)
    with room.claim(4):
        for lanes, finished in parts:
            with room.claim(lanes) as claim:
                for _ in range(finished):
                    claim.give_back()
        assert not room.empty
    assert room.empty
