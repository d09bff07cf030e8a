"""From arrival times to fates: what each answer counts as, and whether the client kept up."""

import math
from dataclasses import replace
from typing import Any

import pytest

from server.bench_images import Pictures
from server.open_loop import Answer, Served
from server.replay import Replay, judge, replay
from tests.server.fake_target import FakeTarget, Machine
from tests.server.fakes import run_virtual

PICTURES = Pictures((b"cat", b"dog", b"cup"), (3, 5, None))
SLO_S = 0.2


def answer(photo: int, status: int, index: int = 0, **changes: Any) -> Answer:
    """An answer to a request that was due at 100 s, after 0.1 s."""
    images = (Served(4, 2, 1.0, 30.0, index, 0.9),) if status == 200 else ()
    made = Answer(photo, due_s=100.0, sent_s=100.0, done_s=100.1, status=status, images=images)
    return replace(made, **changes)


def judged(*answers: Answer) -> Replay:
    """The replay that these answers make, begun at 99 s."""
    return judge(answers, PICTURES, 99.0, seed=1, seconds=10, slo_s=SLO_S)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "ok"), (429, "shed"), (504, "expired"), (500, "failed"), (0, "failed")],
)
def test_statuses_become_outcomes(status: int, outcome: str) -> None:
    """What no status explains has failed; times count from the start of the trace."""
    (fate,) = judged(answer(0, status)).fates
    assert fate.outcome == outcome
    assert (fate.due_s, fate.done_s) == pytest.approx((1.0, 1.1))
    assert fate.r == (4 if outcome == "ok" else None)


def test_an_image_that_could_not_be_classified_has_failed() -> None:
    """A 200 without predictions is no result."""
    (fate,) = judged(answer(0, 200, images=())).fates
    assert fate.outcome == "failed"


def test_answers_are_compared_with_the_labels() -> None:
    """Right, wrong, and not known."""
    right, wrong, unknown = judged(
        answer(0, 200, index=3), answer(1, 200, index=3), answer(2, 200, index=3)
    ).fates
    assert (right.correct, wrong.correct) == (1, 0)
    assert math.isnan(unknown.correct)


def test_other_errors_are_counted_by_kind() -> None:
    """Refusals and expiries are no errors."""
    lost = replace(answer(0, 0), error="ClientOSError: reset")
    done = judged(answer(0, 500), answer(0, 500), lost, answer(0, 429), answer(0, 504))
    assert done.errors == {"status 500": 2, "ClientOSError: reset": 1}


@pytest.mark.parametrize(("lag_s", "kept_up"), [(0.019, True), (0.021, False)])
def test_a_client_that_sends_late_is_told_of(lag_s: float, kept_up: bool) -> None:
    """More than a tenth of the SLO late: the replay says nothing of the server."""
    done = judged(*(answer(0, 200, sent_s=100 + lag_s) for _ in range(10)))
    assert done.lag_p99_s == pytest.approx(lag_s)
    assert done.kept_up is kept_up


def test_switches_are_counted_by_batches() -> None:
    """Two images of one batch are one change of degree, however their answers overtake."""
    first, second = Served(0, 2, 0, 30.0, 3, 0.9), Served(8, 2, 0, 25.0, 3, 0.9)
    order = [(first, 100.10), (second, 100.15), (first, 100.16), (second, 100.17)]
    done = judged(*(answer(0, 200, images=(image,), done_s=at) for image, at in order))
    assert done.figures.switches == 1


def test_requests_leave_when_due_whatever_the_server_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An overloaded server gets all requests in time; latency counts from when they were due."""
    times = [0.01 * number for number in range(3000)]
    target = FakeTarget(Machine(max_batch=4, queue=40))
    pictures = Pictures((b"jpeg",) * 3000, (0,) * 3000)
    done = run_virtual(replay(target, pictures, times, seed=2, seconds=30, slo_s=1.0))
    assert [fate.due_s for fate in done.fates] == pytest.approx(times)
    assert done.lag_max_s == pytest.approx(0, abs=1e-9)
    assert done.kept_up and done.seed == 2
    figures = done.figures
    served_per_s = 4 / target.machine.batch_s(0, 4)
    assert figures.goodput == pytest.approx(served_per_s, rel=0.1)
    assert figures.violations == figures.shed == 3000 - round(30 * figures.goodput)
    latencies = [fate.latency_s for fate in done.fates[500:] if fate.outcome == "ok"]
    assert 0.7 < min(latencies) <= max(latencies) < 1.0
    assert figures.accuracy == 1
    assert "seed 2: 10 of 30 s" in capsys.readouterr().err
