"""What the queue measures of its load."""

import pytest

from server.meters import ArrivalRate, LoadMeter, RecentLatency
from server.stats import BatchStats


def test_rate_converges_to_constant_arrivals() -> None:
    """Five memories of 40 images/s read as 40 images/s."""
    rate = ArrivalRate(memory_s=2.0)
    for i in range(400):
        rate.add(1, i / 40)
    assert rate.per_second(10.0) == pytest.approx(40.0, rel=0.03)


def test_rate_decays_without_arrivals() -> None:
    """After the traffic has gone the rate fades, without anybody touching the meter."""
    rate = ArrivalRate(memory_s=2.0)
    rate.add(100, 0.0)
    assert rate.per_second(0.0) == pytest.approx(50.0)
    assert rate.per_second(2.0) == pytest.approx(50.0 / 2.718, rel=0.01)
    assert rate.per_second(60.0) < 1e-6


def test_several_images_at_once_count_each() -> None:
    """A request with eight images is eight arrivals."""
    one, many = ArrivalRate(2.0), ArrivalRate(2.0)
    for _ in range(8):
        one.add(1, 1.0)
    many.add(8, 1.0)
    assert one.per_second(1.5) == pytest.approx(many.per_second(1.5))


def test_quantile_is_the_nearest_rank() -> None:
    """95 % of 100 answers kept to the 95th smallest latency."""
    recent = RecentLatency()
    for i in range(100):
        recent.add((i + 1) / 100, 0.0)
    assert recent.quantile(0.95, 0.0) == 0.95
    assert recent.quantile(1.0, 0.0) == 1.0


def test_old_answers_are_forgotten() -> None:
    """Only the last two seconds count; then there is no latency to speak of."""
    recent = RecentLatency(window_s=2.0)
    recent.add(9.0, 0.0)
    recent.add(0.1, 1.5)
    assert recent.quantile(0.95, 1.9) == 9.0
    assert recent.quantile(0.95, 2.1) == 0.1
    assert recent.quantile(0.95, 4.0) is None


def test_the_cost_of_a_switch_is_learned_from_switches_alone() -> None:
    """A batch at the same degree merges nothing and says nothing of what a switch costs."""
    meter = LoadMeter()
    for r, merge_s in ((0, 0.0), (8, 0.004), (8, 0.0), (8, 0.0)):
        meter.started(0.0, 1, r, 0.1)
        meter.ended(BatchStats(r, 1, merge_s, 0.1, 0.0))
    meter.started(10.0, 1, 0, 0.1)
    assert meter.residual_s(10.05) == pytest.approx(0.054)
    meter.started(20.0, 1, 8, 0.1)
    assert meter.residual_s(20.05) == pytest.approx(0.05)
    assert meter.residual_s(21.0) == 0.0


def test_what_waited_for_a_batch_is_known_anew_when_that_ends() -> None:
    """Its device is its own from then on, however wrong the guess before was."""
    meter = LoadMeter()
    first = meter.started(0.0, 4, 0, 0.1)
    second = meter.started(0.09, 4, 0, 0.1)
    assert meter.residual_s(0.09) == pytest.approx(0.11)
    meter.ended(BatchStats(0, 4, 0.0, 0.15, 0.0), first)
    assert meter.residual_s(0.15) == pytest.approx(0.1)
    meter.ended(BatchStats(0, 4, 0.0, 0.1, 0.15), second)
    assert meter.residual_s(0.25) == 0.0


def test_batches_that_overlap_do_not_pile_up_guesses() -> None:
    """Each begins shortly before the last one ends, and takes less than was believed."""
    meter, now = LoadMeter(), 0.0
    running = meter.started(now, 4, 0, 0.1)
    for _ in range(50):
        following = meter.started(now + 0.07, 4, 0, 0.1)
        meter.ended(BatchStats(0, 4, 0.0, 0.08, now), running)
        running, now = following, now + 0.08
        assert meter.residual_s(now) <= 0.1 + 1e-9


def test_the_batches_of_another_device_are_left_as_they_are() -> None:
    """Who ends on one device says nothing of what runs on the other."""
    meter = LoadMeter(devices=2)
    first = meter.started(0.0, 4, 0, 0.1)
    other = meter.started(0.0, 4, 0, 0.3)
    assert (first.device, other.device) == (0, 1)
    meter.ended(BatchStats(0, 4, 0.0, 0.1, 0.0, device=0), first)
    assert other.done_at == pytest.approx(0.3)
