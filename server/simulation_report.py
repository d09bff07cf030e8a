"""What `tocom simulate` found, for people and for programs: Markdown, JSON, a CSV of requests."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from server.fates import over_seeds
from server.policy_trials import PolicyTrial, TraceTrials

COLUMNS = {
    "attainment": "attainment",
    "violations": "violations",
    "goodput": "goodput/s",
    "accuracy": "accuracy",
    "on_time_correct": "on time and correct",
    "mean_r": "mean r",
    "switches": "switches",
    "p99_s": "p99 ms",
}
"""Figures of the tables, and what they are called there."""
FLEET_COLUMNS = {
    "replica_hours": "replica-hours",
    "most": "most replicas",
    "grown": "grown",
    "shrunk": "shrunk",
}
"""What an autoscaler's replicas cost, and how often it changed their number."""
ORACLE_COLUMNS = ("oracle's accuracy at equal attainment", "gap, points")
SHARES = ("attainment", "accuracy", "on_time_correct")
WHOLE = ("violations", "switches")


@dataclass(slots=True)
class SimulationReport:
    """Everything that one simulation has found.

    Attributes:
        command: as somebody else could type it.
        profile: the file, and the device in it.
        slo_s: what counts as in time.
        slo_from: how that was arrived at.
        servers: how many shared the load.
        capacities: degree → images/s of one server, saturated.
        traces: what was simulated so far.
        notes: what else a reader must know.
    """

    command: str
    profile: str
    slo_s: float
    slo_from: str
    servers: int
    capacities: dict[int, float]
    traces: list[TraceTrials] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def times_faster(self) -> float:
        """How many times faster than real time the simulations ran, the oracle not counted."""
        trials = [t for trace in self.traces for policy in trace.trials for t in policy]
        simulated_s = math.fsum(trial.figures.seconds for trial in trials)
        wall_s = math.fsum(trial.wall_s for trial in trials)
        return simulated_s / wall_s if wall_s else math.inf


def as_json(report: SimulationReport) -> dict[str, Any]:
    """Return the report as JSON can hold it; what is not known is null."""
    found = {
        "benchmark": "simulate",
        "command": report.command,
        "profile": report.profile,
        "slo_ms": 1000 * report.slo_s,
        "servers": report.servers,
        "capacities": [
            {"r": r, "images_per_s": rate} for r, rate in sorted(report.capacities.items())
        ],
        "times_faster_than_real": report.times_faster,
        "notes": report.notes,
        "traces": [_trace_json(trace) for trace in report.traces],
    }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def as_markdown(report: SimulationReport) -> str:
    """Return the report for a reader: one table per trace and scale."""
    rates = ", ".join(f"{c:.1f} at r={r}" for r, c in sorted(report.capacities.items()))
    lines = [
        "# Simulation",
        "",
        f"`{report.command}`",
        "",
        f"- profile {report.profile}",
        f"- capacity of one server, images/s: {rates}; servers: {report.servers}",
        f"- SLO {1000 * report.slo_s:.1f} ms, {report.slo_from}",
        f"- simulated {report.times_faster:,.0f} times faster than real time",
        *(f"- {note}" for note in report.notes),
    ]
    for trace in report.traces:
        lines += ["", *_table(trace)]
    return "\n".join(lines) + "\n"


def _trace_json(trace: TraceTrials) -> dict[str, Any]:
    return {
        "trace": trace.name,
        "scale": trace.scale,
        "replayed": list(trace.described),
        "oracle": [asdict(bound) for bound in trace.bounds],
        "best_static": trace.best_static and trace.best_static.static_r,
        "policies": [
            {
                "policy": str(trials[0].policy),
                "over_seeds": {
                    name: None if spread is None else asdict(spread)
                    for name, spread in over_seeds([t.figures for t in trials]).items()
                },
                "oracle_accuracy": _median([t.oracle_accuracy for t in trials]),
                "gap_points": _median([t.gap_points for t in trials]),
                "seeds": [_trial_json(trial) for trial in trials],
            }
            for trials in trace.trials
        ],
    }


def _rounded(value: Any) -> Any:
    """Return the same with six decimals: a line of JSON that can still be read."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 6) if isinstance(value, float) else value


def _trial_json(trial: PolicyTrial) -> dict[str, Any]:
    return {
        "seed": trial.seed,
        **trial.figures.to_json(),
        "on_time_accuracy": trial.on_time_accuracy,
        "oracle_accuracy": trial.oracle_accuracy,
        "gap_points": trial.gap_points,
        **({} if trial.use is None else {name: getattr(trial.use, name) for name in FLEET_COLUMNS}),
    }


def _table(trace: TraceTrials) -> list[str]:
    seeds = len(trace.described)
    scaled = trace.trials[0][0].use is not None
    header = ["policy", *COLUMNS.values(), *(FLEET_COLUMNS.values() if scaled else ())]
    header += ORACLE_COLUMNS if trace.bounds else ()
    lines = [
        f"## {trace.name} × {trace.scale:g}",
        "",
        *(f"- {text}" for text in dict.fromkeys(trace.described)),
        f"- medians over {seeds} seeds; ranges are in the JSON" if seeds > 1 else "- one seed",
        "",
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
    ]
    lines += [_row(trials, trace) for trials in trace.trials]
    return lines + _oracle_rows(trace, len(header))


def _row(trials: Sequence[PolicyTrial], trace: TraceTrials) -> str:
    ranges = over_seeds([trial.figures for trial in trials])
    name = str(trials[0].policy)
    if trials[0].policy == trace.best_static:
        name += " (best static)"
    cells = [name]
    for column in COLUMNS:
        spread = ranges[column]
        cells.append(_show(column, None if spread is None else spread.median))
    uses = [trial.use for trial in trials if trial.use is not None]
    for column in FLEET_COLUMNS if uses else ():
        middle = statistics.median(getattr(use, column) for use in uses)
        cells.append(f"{middle:.2f}" if column == "replica_hours" else f"{middle:.0f}")
    if trace.bounds:
        gap = _median([trial.gap_points for trial in trials])
        cells.append(_show("accuracy", _median([trial.oracle_accuracy for trial in trials])))
        cells.append("–" if gap is None else f"{gap:.2f}")
    return f"| {' | '.join(cells)} |"


def _oracle_rows(trace: TraceTrials, width: int) -> list[str]:
    """Two extremes of the bound: most answers in time, and most that are right as well."""
    if not trace.bounds:
        return []
    attainment = _median([bound.attainment for bound in trace.bounds])
    accuracy = _median([bound.accuracy for bound in trace.bounds])
    correct = _median([bound.on_time_correct for bound in trace.bounds])
    most = {"attainment": attainment, "accuracy": accuracy}
    if attainment is not None and accuracy is not None:
        most["on_time_correct"] = attainment * accuracy
    rows = [("oracle, most in time", most), ("oracle, most correct", {"on_time_correct": correct})]
    lines = []
    for name, values in rows:
        cells = [name, *(_show(column, values.get(column)) for column in COLUMNS)]
        lines.append(f"| {' | '.join([*cells, *['–'] * (width - len(cells))])} |")
    return lines


def _show(name: str, value: float | None) -> str:
    """Return a figure as the tables show it: shares in percent, latencies in milliseconds."""
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value:.2%}"
    if name == "p99_s":
        return f"{1000 * value:.0f}"
    return f"{value:.0f}" if name in WHOLE else f"{value:.1f}"


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median; None if one is not known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None
