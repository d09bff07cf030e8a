"""Measuring a server from outside, in virtual time against one whose speed is known."""

import pytest

from server.capacity import (
    FORGET_S,
    REST_S,
    SETTLE_WITHIN_S,
    capacity,
    restore,
    settle,
    single_latency_s,
)
from server.open_loop import Answer
from server.served_process import MeasurementError
from tests.server.fake_target import FakeTarget, Machine
from tests.server.fakes import loop_time, run_virtual


def test_single_latency_is_that_of_a_lone_request() -> None:
    """One image at the asked degree, and the way in."""
    target = FakeTarget(Machine(image_s=0.03, before_s=0.004))
    assert run_virtual(single_latency_s(target)) == pytest.approx(0.034, abs=1e-3)
    assert target.r == 0
    assert run_virtual(single_latency_s(target, r=16)) == pytest.approx(0.019, abs=1e-3)


@pytest.mark.parametrize("r", [0, 16])
@pytest.mark.parametrize("queue", [1000, 24])
def test_capacity_is_full_batches_per_second(r: int, queue: int) -> None:
    """At the pinned degree, whether the queue takes all in or refuses some."""
    machine = Machine(max_batch=4, queue=queue)
    found = run_virtual(capacity(FakeTarget(machine), r))
    assert found.r == r
    assert found.images_per_s == pytest.approx(4 / machine.batch_s(r, 4), rel=0.03)


def test_a_slow_moment_does_not_pass_for_the_capacity() -> None:
    """The closed loop met a server at half its speed; the load is raised until it is too much."""

    class Slow(FakeTarget):
        """Half as fast for the first six seconds."""

        async def classify(self, due_s: float | None = None) -> Answer:
            self.machine.image_s = 0.06 if loop_time() < 6.5 else 0.03
            return await super().classify(due_s)

    machine = Machine(max_batch=4)
    found = run_virtual(capacity(Slow(machine), 0))
    assert found.images_per_s == pytest.approx(4 / machine.batch_s(0, 4), rel=0.05)


def test_a_server_that_is_gone_gives_no_figures() -> None:
    """The message says what came instead of answers."""
    target = FakeTarget(Machine(alive=False))
    with pytest.raises(MeasurementError, match="ConnectionRefusedError"):
        run_virtual(capacity(target, 0))
    with pytest.raises(MeasurementError, match="ConnectionRefusedError"):
        run_virtual(single_latency_s(target))


def test_settling_waits_until_the_degree_is_down() -> None:
    """The controller remembers the load of the measurement for a while."""

    async def main() -> tuple[int, float]:
        target = FakeTarget(Machine(), busy_r=12)
        await settle(target)
        return target.r, loop_time()

    r, took_s = run_virtual(main())
    assert r == 0
    assert 5 <= took_s < 8


def test_settling_waits_while_degrees_are_measured() -> None:
    """One a second, seventeen of them: go as soon as all are known."""

    async def main() -> float:
        await settle(FakeTarget(Machine(measured_per_s=1.0)))
        return loop_time()

    assert run_virtual(main()) == pytest.approx(17, abs=1)


@pytest.mark.parametrize(("per_s", "busy_r"), [(0.0, 0), (1e9, 12)])
def test_settling_goes_on_when_nothing_changes(per_s: float, busy_r: int) -> None:
    """A server that does not measure, or whose policy stays at its degree."""

    async def main() -> float:
        await settle(FakeTarget(Machine(measured_per_s=per_s, stays=True), busy_r=busy_r))
        return loop_time()

    assert run_virtual(main()) == pytest.approx(FORGET_S + REST_S, abs=1)


def test_settling_ends() -> None:
    """A server that measures for ever is not waited for that long."""

    async def main() -> float:
        await settle(FakeTarget(Machine(measured_per_s=0.2)))
        return loop_time()

    assert run_virtual(main()) == pytest.approx(SETTLE_WITHIN_S, abs=5)


@pytest.mark.parametrize(("found", "left"), [("auto", "auto"), ("pinned", "auto"), ("shadow",) * 2])
def test_the_dial_is_given_back(found: str, left: str) -> None:
    """As it was, but a pin: the bench has put its own in its place."""
    target = FakeTarget(Machine())
    run_virtual(restore(target, found))
    assert target.mode == left
