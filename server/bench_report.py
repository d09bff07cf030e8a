"""What a bench found, for people and for programs: Markdown, JSON and a CSV of every request."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from server.capacity import Capacity
from server.fates import Figures, Range, over_seeds
from server.replay import LAG_SHARE, Replay

LATENCIES = ("p50_s", "p99_s")
SHARES = ("attainment", "accuracy", "on_time_correct")
COLUMNS = {
    "attainment": "attainment",
    "goodput": "goodput/s",
    "accuracy": "accuracy",
    "on_time_correct": "on time and correct",
    "mean_r": "mean r",
    "switches": "switches",
    "p50_s": "p50 ms",
    "p99_s": "p99 ms",
    "late": "late",
    "shed": "shed",
    "expired": "expired",
    "failed": "failed",
}
"""Figures of the tables, and what they are called there."""


@dataclass(slots=True)
class BenchReport:
    """Everything that one bench has found so far.

    Attributes:
        command: as somebody else could type it.
        trace: as the user called it; empty if nothing is replayed.
        described: per seed, what was replayed.
        model: name and digest of what was served.
        device: where it ran.
        slo_s: what counts as in time.
        server_slo_s: what the server itself aims at; None if it does not say.
        single_latency_s: of a request alone at r=0; None if the SLO was given.
        capacities: measured, first at r=0.
        correctness_unknown: why some answers could not be judged; empty if all could.
        replays: finished seeds.
        notes: what else a reader must know.
        complete: whether all seeds were replayed.
    """

    command: str
    trace: str
    described: list[str] = field(default_factory=list)
    model: str = ""
    device: str = ""
    slo_s: float = math.nan
    server_slo_s: float | None = None
    single_latency_s: float | None = None
    capacities: list[Capacity] = field(default_factory=list)
    correctness_unknown: str = ""
    replays: list[Replay] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def valid(self) -> bool:
        """Whether the client kept up in every replay."""
        return all(replay.kept_up for replay in self.replays)

    @property
    def figures(self) -> list[Figures]:
        """Of all seeds."""
        return [replay.figures for replay in self.replays]


def as_json(report: BenchReport) -> dict[str, Any]:
    """Return the report as JSON can hold it; what is not known is null."""
    return {
        "benchmark": "bench",
        "command": report.command,
        "trace": report.trace or None,
        "model": report.model,
        "device": report.device,
        "slo_ms": _ms(report.slo_s),
        "server_slo_ms": _ms(report.server_slo_s),
        "single_latency_ms": _ms(report.single_latency_s),
        "capacities": [asdict(capacity) for capacity in report.capacities],
        "correctness_unknown": report.correctness_unknown or None,
        "valid": report.valid,
        "complete": report.complete,
        "notes": report.notes,
        "seeds": [
            {
                "seed": replay.seed,
                "replayed": described,
                "lag_p99_ms": _ms(replay.lag_p99_s),
                "lag_max_ms": _ms(replay.lag_max_s),
                "kept_up": replay.kept_up,
                "errors": replay.errors,
                **replay.figures.to_json(),
            }
            for replay, described in zip(report.replays, report.described, strict=False)
        ],
        "over_seeds": ranges_json(report.figures),
    }


def ranges_json(runs: Sequence[Figures]) -> dict[str, dict[str, float] | None]:
    """Return median and range of each figure over seeds; empty without any."""
    if not runs:
        return {}
    return {name: None if r is None else asdict(r) for name, r in over_seeds(runs).items()}


def as_markdown(report: BenchReport) -> str:
    """Return the report for a reader."""
    lines = [f"# Replay of {report.trace}" if report.trace else "# Capacity", "", *_facts(report)]
    if report.replays:
        names = COLUMNS.values()
        lines += ["", "| seed | offered | " + " | ".join([*names, "client lag p99 ms"]) + " |"]
        lines += ["|---" * (len(COLUMNS) + 3) + "|"]
        lines += [_row(replay) for replay in report.replays]
        if len(report.replays) > 1:
            ranges = over_seeds(report.figures)
            cells = [show_range(name, ranges[name]) for name in COLUMNS]
            lines += [" | ".join(["| median (range)", "", *cells, "", ""]).rstrip()]
    return "\n".join(lines) + "\n"


def show_figure(name: str, value: float | None) -> str:
    """Return a figure as the tables show it: shares in percent, latencies in milliseconds."""
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value:.2%}"
    if name in LATENCIES:
        return f"{1000 * value:.0f}"
    return f"{value:.1f}" if name in ("goodput", "mean_r") else f"{value:.0f}"


def show_range(name: str, spread: Range | None) -> str:
    """Return the median and, in parentheses, the range."""
    if spread is None:
        return "–"
    low, high = show_figure(name, spread.low), show_figure(name, spread.high)
    return f"{show_figure(name, spread.median)} ({low} to {high})"


def write_summary(folder: Path, report: BenchReport) -> None:
    """Write `report.json` and `report.md`."""
    text = json.dumps(as_json(report), indent=2, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")


def _facts(report: BenchReport) -> list[str]:
    facts = [f"`{report.command}`", "", f"- model {report.model} on {report.device}"]
    for capacity in report.capacities:
        facts.append(f"- capacity at r={capacity.r}: {capacity.images_per_s:.1f} images/s")
    single = report.single_latency_s
    why = "" if single is None else f", ten times the {1000 * single:.1f} ms of a single request"
    facts.append(f"- SLO {1000 * report.slo_s:.1f} ms{why}")
    facts += [
        f"- seed {r.seed}: {d}" for r, d in zip(report.replays, report.described, strict=False)
    ]
    if report.replays and report.correctness_unknown:
        facts.append(f"- correctness is not known: {report.correctness_unknown}")
    if not report.valid:
        facts.append(
            f"- **Not valid**: the client sent requests more than {LAG_SHARE:.0%} of the SLO after "
            "they were due; take a faster or less busy machine for it, or a smaller load"
        )
    facts += [f"- {note}" for note in report.notes]
    return facts


def _row(replay: Replay) -> str:
    figures = replay.figures.to_json()
    cells = [show_figure(name, figures[name]) for name in COLUMNS]
    lag = f"{1000 * replay.lag_p99_s:.1f}" + ("" if replay.kept_up else " **too late**")
    return f"| {replay.seed} | {replay.figures.offered} | {' | '.join(cells)} | {lag} |"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or math.isnan(seconds) else 1000 * seconds
