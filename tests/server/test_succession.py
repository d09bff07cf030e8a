"""What a new model's controller and queue take over from the one before."""

import asyncio
from typing import Any

from server.meters import LoadMeter
from server.succession import room_after, take_over
from tests.server.fake_table import SetTable
from tests.server.fakes import run_virtual
from tests.server.test_controller import Bench


def bench(highest: int = 16, **options: Any) -> Bench:
    """A controller of a model with the degrees 0 to `highest`."""
    return Bench(table=SetTable(range(highest + 1)), **options)


def follow(old: Bench, new: Bench) -> None:
    """Let the one take over from the other."""
    take_over(old.controller.status(), old.table.degrees[-1], new.controller)


def test_a_pin_holds_on_for_what_is_left_of_it() -> None:
    """It is the operator's word, with its end."""
    old, new = bench(), bench()
    old.controller.pin(9, ttl_s=60)
    old.clock.now += 20
    follow(old, new)
    status = new.controller.status()
    assert (status.mode, status.r, status.pinned_ttl_s) == ("pinned", 9, 40)


def test_a_pin_that_the_new_model_does_not_have_ends() -> None:
    """The policy decides then, from the nearest degree."""
    old, new = bench(), bench(highest=4)
    old.controller.pin(9)
    follow(old, new)
    assert (new.mode, new.controller.status().r) == ("auto", 4)


def test_shadow_mode_holds_on() -> None:
    """With its degree; and where it was ended, the new model does not begin with it again."""
    old, new = bench(), bench()
    old.controller.shadow(5, ttl_s=60)
    follow(old, new)
    assert (new.mode, new.controller.status().r) == ("shadow", 5)
    ended, begins = bench(mode="shadow"), bench(mode="shadow")
    ended.controller.auto()
    follow(ended, begins)
    assert begins.mode == "auto"


def test_bounds_hold_on_as_far_as_they_can() -> None:
    """A bound that the operator set is kept, the end of the old model's range is none."""
    old, new = bench(), bench(highest=8)
    old.controller.bound(2, 6)
    follow(old, new)
    status = new.controller.status()
    assert (status.min_r, status.max_r) == (2, 6)
    wider = bench(highest=16)
    follow(bench(highest=8), wider)
    assert wider.controller.status().max_r == 16
    narrow = bench(highest=1)
    follow(old, narrow)
    status = narrow.controller.status()
    assert (status.min_r, status.max_r) == (1, 1)


def test_the_degree_goes_on_from_where_it_is() -> None:
    """Under load it was not low for nothing."""
    old, new = bench(), bench()
    old.policy.r = 7
    assert old.next_r() == 7
    follow(old, new)
    assert new.controller.status().r == 7


def test_the_arrivals_are_remembered() -> None:
    """Rates go on; what was learned of the old model's batches does not."""
    old, new = LoadMeter(), LoadMeter()
    for step in range(300):
        old.arrived(step / 100, 1)
    old.started(3.0, 4, 0, 9.0)
    new.take_over(old)
    new.arrived(3.0, 1)
    assert new._steady_rate.per_second(3.0) > 50
    assert not new.busy


def test_the_new_models_batches_wait_for_the_old_ones() -> None:
    """And then for its own room."""

    async def story() -> None:
        over, free = asyncio.Event(), asyncio.Event()

        async def room() -> None:
            await free.wait()

        waiting = asyncio.ensure_future(room_after(over, room)())
        for event in (over, free):
            await asyncio.sleep(1)
            assert not waiting.done()
            event.set()
        await waiting

    run_virtual(story())
