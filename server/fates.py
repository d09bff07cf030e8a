"""What became of the requests of a replay, and the figures by which policies are compared.

The real client and the simulator fill in the same records and get the same figures, so the two can
be laid side by side. The definitions are the project's (section 3 of its design): everything is a
share of what was *offered*, so that refusing work never looks like an improvement.
"""

import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "shed", "expired", "failed"]
"""Answered with a result, refused (429), given up in time (504), anything else."""

UNKNOWN = math.nan
"""`Fate.correct` of an image without a label, or without an answer."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one request for one image.

    Attributes:
        due_s: when it was due, in seconds since the trace began.
        done_s: when its answer was there, of whatever kind.
        outcome: how it ended.
        r: the degree it was served at; None without a result.
        correct: 1 if the first class was right, 0 if not; in a simulation, or wherever it is not
            known per image, the probability that it was; NaN where nothing is known.
        batch_size: images of the batch it was part of; 0 without a result.
    """

    due_s: float
    done_s: float
    outcome: Outcome
    r: int | None
    correct: float = UNKNOWN
    batch_size: int = 0

    @property
    def latency_s(self) -> float:
        """From when the request was due to the end of its answer."""
        return self.done_s - self.due_s

    def on_time(self, slo_s: float) -> bool:
        """Whether there was a result within the SLO."""
        return self.outcome == "ok" and self.latency_s <= slo_s


@dataclass(frozen=True, slots=True)
class Figures:
    """One replay in numbers; what is not known is None.

    Attributes:
        offered: requests that were due.
        seconds: how long the trace was.
        attainment: results within the SLO ÷ offered.
        violations: offered requests without a result within the SLO.
        goodput: results within the SLO per second.
        accuracy: mean `Fate.correct` of the results, late ones included.
        on_time_correct: results that were both within the SLO and right ÷ offered.
        mean_r: mean degree of the results.
        p50_s: median latency of the results.
        p99_s: their 99th percentile.
        late: results after the SLO.
        shed: requests that were refused.
        expired: requests that were given up.
        failed: requests that got another error, or no answer.
        switches: how often the degree changed.
    """

    offered: int
    seconds: float
    attainment: float | None
    violations: int
    goodput: float
    accuracy: float | None
    on_time_correct: float | None
    mean_r: float | None
    p50_s: float | None
    p99_s: float | None
    late: int
    shed: int
    expired: int
    failed: int
    switches: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name, as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Range:
    """A figure over several seeds."""

    median: float
    low: float
    high: float


def summarise(
    fates: Sequence[Fate],
    slo_s: float,
    *,
    seconds: float | None = None,
    switches: int | None = None,
) -> Figures:
    """Reduce a replay to its figures.

    Args:
        fates: of all requests that were due, in any order.
        slo_s: the latency that was promised, counted from when a request was due.
        seconds: length of the trace; None: until the last request was due.
        switches: changes of the degree; None: as often as it differs between one result and the
            next.
    """
    served = [fate for fate in fates if fate.outcome == "ok"]
    timely = [fate for fate in served if fate.on_time(slo_s)]
    latencies = [fate.latency_s for fate in served]
    length = max((fate.due_s for fate in fates), default=0.0) if seconds is None else seconds
    ended = {kind: sum(fate.outcome == kind for fate in fates) for kind in ("shed", "expired")}
    return Figures(
        offered=len(fates),
        seconds=length,
        attainment=len(timely) / len(fates) if fates else None,
        violations=len(fates) - len(timely),
        goodput=len(timely) / length if length else 0.0,
        accuracy=_mean([fate.correct for fate in served]),
        on_time_correct=_known(sum(fate.correct for fate in timely) / len(fates))
        if fates
        else None,
        mean_r=_mean([fate.r for fate in served if fate.r is not None]),
        p50_s=percentile(latencies, 50),
        p99_s=percentile(latencies, 99),
        late=len(served) - len(timely),
        shed=ended["shed"],
        expired=ended["expired"],
        failed=sum(fate.outcome == "failed" for fate in fates),
        switches=count_switches(fates) if switches is None else switches,
    )


def count_switches(fates: Iterable[Fate]) -> int:
    """Count how often the degree differs from one result to the next, in order of completion."""
    served = sorted((fate.done_s, fate.r) for fate in fates if fate.r is not None)
    return sum(one != other for (_, one), (_, other) in itertools.pairwise(served))


def over_seeds(runs: Sequence[Figures]) -> dict[str, Range | None]:
    """Return median and range of each figure; None where a run does not know it."""
    return {
        field.name: _range([getattr(run, field.name) for run in runs]) for field in fields(Figures)
    }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` of all do not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def _range(values: Sequence[float | None]) -> Range | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Range(statistics.median(known), min(known), max(known))


def _mean(values: Sequence[float]) -> float | None:
    return _known(math.fsum(values) / len(values)) if values else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_requests(path: Path, fates: Iterable[Fate]) -> None:
    """Write what became of each request as CSV; an empty cell is not known."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["arrival_s", "done_s", "outcome", "r", "correct", "batch_size"])
        for fate in fates:
            correct = "" if math.isnan(fate.correct) else f"{fate.correct:g}"
            times = f"{fate.due_s:.6f}", f"{fate.done_s:.6f}"
            degree = "" if fate.r is None else fate.r
            writer.writerow([*times, fate.outcome, degree, correct, fate.batch_size])
