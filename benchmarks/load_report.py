"""What a load run showed: its records, one row per phase, the table and the JSON record."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from server.answered_batches import find_batches
from server.open_loop import Answer, Sample, Watch


@dataclass(frozen=True, slots=True)
class Phase:
    """Load as a multiple of the capacity at r=0, for some seconds."""

    multiple: float
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``1.5x60``.

        Raises:
            ValueError: it is not of this form, or outside sensible bounds.
        """
        found = re.fullmatch(r"([\d.]+)[x×]([\d.]+)", text)
        phase = cls(float(found[1]), float(found[2])) if found else cls(0, 0)
        if not (0 < phase.multiple <= 20 and 1 <= phase.seconds <= 3600):
            raise ValueError(
                f"phase {text!r}: expected MULTIPLExSECONDS such as 1.5x60, up to 20 times the "
                "capacity, for 1 to 3600 seconds"
            )
        return phase

    def __str__(self) -> str:
        return f"{self.multiple:g} × capacity"


@dataclass(frozen=True, slots=True)
class Span:
    """When a phase began and ended on the event loop's clock."""

    phase: Phase
    start_s: float
    end_s: float

    def holds(self, at_s: float) -> bool:
        """Whether this moment belongs to the phase."""
        return self.start_s <= at_s < self.end_s


@dataclass(frozen=True, slots=True)
class PinTest:
    """The dial was turned by hand under load; ``multiparts`` are requests of several images."""

    r_before: int
    r: int
    asked_s: float
    replied_s: float
    multiparts: list[Answer]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that was seen."""

    capacity: float
    slo_s: float
    r_source: int
    arrivals: str
    spans: list[Span]
    answers: list[Answer]
    watch: Watch
    pin: PinTest | None

    @property
    def all_answers(self) -> list[Answer]:
        """The open loop's and those of several images."""
        return [*self.answers, *(self.pin.multiparts if self.pin else [])]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One row of the table; latency, attainment and r are of what was due in the phase."""

    phase: str
    seconds: float
    offered_per_s: float
    served_per_s: float
    statuses: dict[int, int]
    dropped: int
    p50_ms: float
    p99_ms: float
    attainment: float
    r_mean: float
    r_min: int | None
    r_max: int | None
    r_last: int | None
    r_back_after_s: float | None
    retry_after_share: float | None
    retry_after_s: float | None
    client_lag_p99_ms: float


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, and what was seen."""

    what: str
    passed: bool
    seen: str


def describe(run: Run, checks: list[Check]) -> dict[str, Any]:
    """The run as one JSON-able record; what is not a number is null."""
    return {
        "benchmark": "load",
        "arrivals": run.arrivals,
        "capacity_images_per_s": run.capacity,
        "slo_s": run.slo_s,
        "phases": [
            {name: None if value != value else value for name, value in asdict(row).items()}
            for row in rows(run)
        ],
        "pin": run.pin and pin_evidence(run, run.pin),
        "checks": [asdict(check) for check in checks],
    }


def show(run: Run, checks: list[Check]) -> None:
    """Print the table and the checks."""
    print(
        "| phase | s | offered/s | served/s | answers by status | dropped | p50 ms | p99 ms "
        f"| within {1000 * run.slo_s:g} ms | r mean (min–max) | r back after s "
        "| Retry-After: share, median | client lag p99 ms |"
    )
    print("|---" * 13 + "|")
    for row in rows(run):
        statuses = ", ".join(f"{status}: {n}" for status, n in row.statuses.items())
        degrees = "–" if row.r_min is None else f"{row.r_mean:.1f} ({row.r_min}–{row.r_max})"
        back = "–" if row.r_back_after_s is None else f"{row.r_back_after_s:.1f}"
        share = row.retry_after_share
        retry = "–" if share is None else f"{share:.0%}, {row.retry_after_s or math.nan:.0f} s"
        print(
            f"| {row.phase} | {row.seconds:g} | {row.offered_per_s:.1f} | {row.served_per_s:.1f} "
            f"| {statuses} | {row.dropped} | {row.p50_ms:.0f} | {row.p99_ms:.0f} "
            f"| {row.attainment:.1%} | {degrees} | {back} | {retry} "
            f"| {row.client_lag_p99_ms:.1f} |"
        )
    print()
    for one in checks:
        print(f"- {'pass' if one.passed else 'FAIL'}: {one.what} — {one.seen}")
    print()


def pin_evidence(run: Run, pin: PinTest) -> dict[str, Any]:
    """Requests sent after the reply to the PUT, and batches that ended after it.

    A request begun after the reply joined the queue after the turn: another r in its answer would
    be the server's fault.  The batch that was computing at the turn still has the old one.
    """
    after = [a for a in run.all_answers if a.sent_s > pin.replied_s and a.status == 200]
    batches = [b for b in find_batches(run.all_answers) if b.first_done_s > pin.replied_s]
    return {
        "r_before": pin.r_before,
        "r": pin.r,
        "reply_ms": 1000 * (pin.replied_s - pin.asked_s),
        "answers_begun_after": len(after),
        "answers_with_another_r": sum(i.r != pin.r for a in after for i in a.images),
        "batches_ended_after": len(batches),
        "batches_with_another_r": sum(batch.degrees != {pin.r} for batch in batches),
    }


def rows(run: Run) -> list[PhaseResult]:
    """One per phase, in order."""
    return [_row(run, span) for span in run.spans]


def _row(run: Run, span: Span) -> PhaseResult:
    due = [a for a in run.answers if span.holds(a.due_s)]
    good = [a for a in due if a.status == 200]
    refused = [a for a in due if a.status == 429]
    advice = [a.retry_after_s for a in refused if a.retry_after_s is not None]
    served = sum(len(a.images) for a in run.all_answers if span.holds(a.done_s))
    degrees = [image.r for a in good for image in a.images]
    samples = [sample for sample in run.watch.samples if span.holds(sample.at_s)]
    return PhaseResult(
        phase=str(span.phase),
        seconds=span.phase.seconds,
        offered_per_s=len(due) / span.phase.seconds,
        served_per_s=served / span.phase.seconds,
        statuses=dict(sorted(Counter(a.status for a in due if a.status).items())),
        dropped=sum(a.status == 0 for a in due),
        p50_ms=1000 * percentile([a.latency_s for a in good], 50),
        p99_ms=1000 * percentile([a.latency_s for a in good], 99),
        attainment=sum(a.latency_s <= run.slo_s for a in good) / max(1, len(due)),
        r_mean=statistics.fmean(degrees) if degrees else math.nan,
        r_min=min(degrees, default=None),
        r_max=max(degrees, default=None),
        r_last=samples[-1].r if samples else None,
        r_back_after_s=_back_after_s(samples, span, run.r_source),
        retry_after_share=len(advice) / len(refused) if refused else None,
        retry_after_s=statistics.median(advice) if advice else None,
        client_lag_p99_ms=1000 * percentile([a.sent_s - a.due_s for a in due], 99),
    )


def _back_after_s(samples: list[Sample], span: Span, r_source: int) -> float | None:
    """When in the phase r came back to ``r_source`` for good; None if it did not or never left."""
    away = [sample for sample in samples if sample.r != r_source]
    if not away or away[-1] is samples[-1]:
        return None
    first = samples[samples.index(away[-1]) + 1]
    return first.at_s - span.start_s


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of all do not exceed; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
