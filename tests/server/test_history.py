"""The last minutes: what is counted, what is forgotten."""

from random import Random
from typing import Any

import pytest

from server.agreement import AgreementEstimate
from server.control_status import ControllerStatus, DegreeChange
from server.history import (
    KEPT_SNAPSHOTS,
    LATENCIES_PER_INTERVAL,
    LATENCY_WINDOW,
    History,
    Snapshot,
    percentiles,
)
from server.stats import BatchStats, LoadSnapshot, Outcome, RequestStats
from tests.server.fakes import ManualClock, believed


def image(outcome: Outcome = "ok", total_s: float = 0.1) -> RequestStats:
    """How one image ended."""
    return RequestStats(outcome, 0, 0.0, 0.0, 0.0, total_s)


class Watched:
    """A history and the clock that it goes by."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.history = History(self.clock, lambda: 1000.0 + self.clock.now, Random(0))

    def second(self, load: LoadSnapshot | None = None, **state: object) -> Snapshot:
        """Let a second pass and take its snapshot."""
        self.clock.now += 1
        given: dict[str, Any] = {
            "r_source": 0,
            "ready": True,
            "draining": False,
            "status": None,
        } | state
        return self.history.sample(load or LoadSnapshot(self.clock.now), **given)


def test_rates_are_those_of_the_interval() -> None:
    """Answers and refusals are per second of the interval; outcomes are counted since the start."""
    watched = Watched()
    for outcome in ("ok", "ok", "ok", "shed", "expired", "bad_image"):
        watched.history.observe_image(image(outcome))
    watched.clock.now += 1
    first = watched.second()
    assert (first.answered_per_s, first.refused_per_s) == (1.5, 1.0)
    watched.history.observe_image(image())
    second = watched.second()
    assert (second.answered_per_s, second.refused_per_s) == (1.0, 0.0)
    assert second.outcomes == {"ok": 4, "shed": 1, "expired": 1, "bad_image": 1}
    assert first.outcomes["ok"] == 3


def test_latencies_are_of_the_last_seconds() -> None:
    """Percentiles look back over a few intervals, at answers with a result only."""
    watched = Watched()
    watched.history.observe_image(image(total_s=0.5))
    watched.history.observe_image(image("shed", total_s=9.0))
    assert watched.second().latency_ms == percentiles([0.5])
    for _ in range(LATENCY_WINDOW - 1):
        latest = watched.second()
    assert latest.latency_ms is not None
    assert watched.second().latency_ms is None


def test_percentiles() -> None:
    """The latency that so many percent of the answers kept to."""
    found = percentiles([n / 1000 for n in range(1, 101)])
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.samples) == (50.0, 95.0, 99.0, 100)
    assert percentiles([]) is None


def test_a_busy_second_keeps_a_fair_sample_of_its_latencies() -> None:
    """Beyond the limit a random part is kept: memory is bounded and the median stays."""
    watched = Watched()
    count = 10 * LATENCIES_PER_INTERVAL
    for n in range(count):
        watched.history.observe_image(image(total_s=n / count))
    latency = watched.second().latency_ms
    assert latency is not None
    assert latency.samples == LATENCIES_PER_INTERVAL
    assert latency.p50 == pytest.approx(500, abs=50)


def test_only_the_newest_snapshots_are_kept() -> None:
    """The ring holds a fixed number, oldest first."""
    watched = Watched()
    taken = [watched.second() for _ in range(KEPT_SNAPSHOTS + 5)]
    assert watched.history.snapshots == tuple(taken[5:])
    assert taken[0].at == 1000.0 + 101


def test_batches_of_the_second_are_averaged() -> None:
    """The mean size of the batches since the last snapshot; nothing without one."""
    watched = Watched()
    for size in (2, 5):
        watched.history.observe_batch(BatchStats(0, size, 0.0, 0.1, 0.0))
    assert watched.second().batch_size == 3.5
    assert watched.second().batch_size is None


def test_the_controller_and_the_load_are_told() -> None:
    """Degree, mode, reason, expected accuracy and agreement are those of the present degree."""
    agreement = AgreementEstimate(0.9, 0.8, 0.95, 30)
    levels = believed(lambda r, size: 0.1, (0, 4))
    status = ControllerStatus(
        *("pinned", 4, 0, 0, 4, None, 12.5, DegreeChange(0, 4, "pinned", 1.0), levels, (0, 4)),
        agreement={4: agreement, 0: AgreementEstimate(1, 1, 1, 1)},
    )
    load = LoadSnapshot(0.0, decoding=2, in_flight=3, steady_rate=7.123)
    taken = Watched().second(load, status=status, ready=False, draining=True)
    assert (taken.r, taken.mode, taken.reason, taken.pinned_ttl_s) == (4, "pinned", "pinned", 12.5)
    assert (taken.agreement, taken.expected_accuracy) == (agreement, None)
    assert (taken.decoding, taken.in_flight, taken.offered_per_s) == (2, 3, 7.12)
    assert (taken.ready, taken.draining) == (False, True)


def test_before_the_warm_up_ends_there_is_no_controller() -> None:
    """The degree is the checkpoint's, and nobody has changed it."""
    taken = Watched().second(r_source=3, ready=False)
    assert (taken.r, taken.mode, taken.reason, taken.expected_accuracy) == (
        3,
        "auto",
        "start",
        None,
    )
