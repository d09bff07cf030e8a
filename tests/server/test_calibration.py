"""A latency profile from outside: it finds the numbers of a machine that is known."""

import itertools

import pytest

from server.answered_batches import Batch
from server.calibration import (
    DEGREES,
    TURN_S,
    TURNS,
    batch_measurements,
    calibrate,
    serving_overhead,
)
from server.served_process import MeasurementError
from tests.server.fake_target import FakeTarget, Machine
from tests.server.fakes import run_virtual


def test_a_known_machine_is_found() -> None:
    """Durations by degree and size, and the time outside of queue and batch."""
    machine = Machine(image_s=0.03, max_batch=4, before_s=0.004)
    profile = run_virtual(calibrate(FakeTarget(machine), 8))
    sizes = {(m.r, m.batch) for m in profile.measurements}
    assert {(0, 1), (0, 4), (16, 1), (16, 4)} <= sizes
    assert len({r for r, _ in sizes}) == 6
    for found in profile.measurements:
        assert found.seconds == pytest.approx(machine.batch_s(found.r, found.batch), rel=0.15)
    serving = profile.serving
    assert serving is not None
    assert serving.before_queue_s + serving.after_batch_s == pytest.approx(0.004, rel=0.05)
    assert serving.after_batch_s == pytest.approx(0.001)
    assert serving.interference_s == 0
    assert (profile.max_batch_size, profile.lanes) == (8, 2)
    assert profile.degrees == tuple(range(17))
    assert profile.work[16] == pytest.approx(0.5)
    assert profile.expected_accuracy()[4] == pytest.approx(0.86)
    assert 3 not in profile.expected_accuracy()


def test_a_machine_that_is_slow_now_and_then_is_so_for_all_degrees() -> None:
    """Half as fast for 10 s, as often as another load begins: no degree takes it all."""
    every_s = DEGREES * TURNS * TURN_S
    machine = Machine(image_s=0.03, max_batch=4, slow_every_s=every_s, slow_for_s=10.0)
    profile = run_virtual(calibrate(FakeTarget(machine), 8))
    slower = [m.seconds / machine.batch_s(m.r, 1) for m in profile.measurements if m.batch == 1]
    assert len(slower) == DEGREES
    assert max(slower) < 1.1 * min(slower)


def test_a_server_with_one_degree_is_measured_too() -> None:
    """Without anything to dial there is still a latency per batch."""
    profile = run_virtual(calibrate(FakeTarget(Machine(levels=(0,))), 8))
    assert {m.r for m in profile.measurements} == {0}


def test_a_server_that_is_gone_is_an_error() -> None:
    """No profile is better than one of nothing."""
    with pytest.raises(MeasurementError):
        run_virtual(calibrate(FakeTarget(Machine(alive=False)), 8))


def test_only_whole_batches_of_one_degree_count() -> None:
    """Others may have been two batches, or had images of other clients."""
    done_s = itertools.count(1.0)

    def batch(size: int, seen: int, *degrees: int) -> Batch:
        at = next(done_s)
        return Batch(size, 0.1, at, at, seen, set(degrees))

    whole = [batch(2, 2, 4) for _ in range(3)]
    others = [
        other
        for _ in range(3)
        for other in (
            *(batch(3, 2, 4), batch(3, 4, 4), batch(3, 3, 4, 8)),
            *(batch(3, 3, 8), batch(9, 9, 4)),
        )
    ]
    (found,) = batch_measurements(4, [*whole, *others], 8)
    assert (found.r, found.batch, found.runs) == (4, 2, 3)
    assert found.seconds == pytest.approx(0.1)
    assert batch_measurements(4, whole[:2], 8) == []


def test_what_two_batches_share_is_the_first_ones() -> None:
    """On lanes the next one begins while the last one ends."""
    overlapping = [Batch(2, 0.15, at, at, 2, {4}) for at in (1.0, 1.1, 1.2, 1.3, 1.4)]
    (found,) = batch_measurements(4, overlapping, 8)
    assert found.seconds == pytest.approx(0.1)


def test_overhead_is_never_negative() -> None:
    """Clocks round; a request cannot take less than its queue and batch."""
    serving = serving_overhead([-0.001, -0.002], [0.01])
    assert (serving.before_queue_s, serving.after_batch_s) == (0, 0)
    assert serving_overhead([0.003], []).before_queue_s == 0.003
