"""What a comparison of policies showed: its records and their files, tables, pictures, JSON.

On time and correct is told twice. By the labels of the photographs, it is what really happened. But
all policies are shown the same few hundred, and on those one degree has a point more than its
neighbours by chance: whoever stays at a lucky one is ahead, and more seeds do not help. So beside
it each answer counts as much as is expected of its degree.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Self

from server.bench_report import show_range
from server.fates import UNKNOWN, Fate, Figures, over_seeds, summarise
from server.replay import Replay, ServedBatch
from server.timeline_plot import PlottedRun, plot_timeline

DEFAULT = "demand"
LOWEST = "static r=0"
COLUMNS = {
    "attainment": "attainment",
    "on_time_correct": "on time and correct",
    "accuracy": "accuracy",
    "goodput": "goodput/s",
    "mean_r": "mean r",
    "switches": "switches",
    "p99_s": "p99 ms",
}
AS_EXPECTED = "on time and correct, as expected"

CAPACITY = "capacity"
"""Stands in a file's name where that of a replay has its policy."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs of a folder share; `capacity` is that of r=0 in images/s."""

    flags: tuple[str, ...]
    model: str
    slo_s: float
    capacity: float
    highest: int
    highest_capacity: float
    correctness_unknown: str

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        return cls(**content | {"flags": tuple(content["flags"])})

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2))


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """One seed of one trace under one policy."""

    policy: str
    replay: Replay

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        replay: dict[str, Any] = content["replay"]
        replay["figures"] = Figures(**replay["figures"])
        replay["fates"] = tuple(Fate(*values) for values in replay["fates"])
        replay["batches"] = tuple(ServedBatch(*values) for values in replay.get("batches", ()))
        return cls(content["policy"], Replay(**replay))

    def save(self, path: Path) -> None:
        """Write it as JSON, all at once: half a file would count as a finished run."""
        replay = asdict(self.replay) | {
            "fates": [astuple(fate) for fate in self.replay.fates],
            "batches": [astuple(batch) for batch in self.replay.batches],
        }
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps({"policy": self.policy, "replay": replay}))
        unfinished.replace(path)


Runs = Mapping[str, Sequence[PolicyRun]]
"""Trace to its runs."""
Expected = Mapping[int, float]
"""Degree to the accuracy that is expected of it; empty where that is not known."""


def as_expected(setting: Setting, runs: Runs, expected: Expected) -> Runs:
    """Return the runs as if each answer were as correct as its degree usually is.

    Where nothing is expected of a degree that was served, the figures know of no accuracy.
    """
    return {
        trace: [
            replace(run, replay=_usual(run.replay, setting.slo_s, expected)) for run in of_trace
        ]
        for trace, of_trace in runs.items()
    }


def _usual(replay: Replay, slo_s: float, expected: Expected) -> Replay:
    fates = tuple(
        fate if fate.r is None else replace(fate, correct=expected.get(fate.r, UNKNOWN))
        for fate in replay.fates
    )
    seen = replay.figures
    figures = summarise(fates, slo_s, seconds=seen.seconds, switches=seen.switches)
    return replace(replay, fates=fates, figures=figures)


def show(setting: Setting, runs: Runs, usual_runs: Runs) -> None:
    """Print a table per trace, and how the default compares with the best of the others.

    Args:
        setting: what they share.
        runs: what happened.
        usual_runs: the same `as_expected`.
    """
    print(f"Model {setting.model}, SLO {1000 * setting.slo_s:.1f} ms; capacity", end=" ")
    print(f"{setting.capacity:.1f} images/s at r=0,", end=" ")
    print(f"{setting.highest_capacity:.1f} images/s at r={setting.highest}.")
    if setting.correctness_unknown:
        print(f"\nCorrectness is not known: {setting.correctness_unknown}.")
    for trace, of_trace in runs.items():
        grouped = by_policy(of_trace)
        usual = by_policy(usual_runs[trace])
        seeds = sorted({run.replay.seed for run in of_trace})
        best = best_static(grouped)
        print(f"\n## {trace}\n\nMedian and range of seeds {', '.join(map(str, seeds))}.\n")
        print("| policy | " + " | ".join([*COLUMNS.values(), AS_EXPECTED]) + " |")
        print("|---" * (len(COLUMNS) + 2) + "|")
        for policy, replays in grouped.items():
            ranges = over_seeds([replay.figures for replay in replays])
            cells = [show_range(name, ranges[name]) for name in COLUMNS]
            share = over_seeds([replay.figures for replay in usual[policy]])["on_time_correct"]
            cells.append(show_range("on_time_correct", share))
            mark = " (best static)" if policy == best else ""
            print(f"| {policy}{mark} | {' | '.join(cells)} |")
        late = [run for run in of_trace if not run.replay.kept_up]
        if late:
            names = ", ".join(f"{run.policy} seed {run.replay.seed}" for run in late)
            print(f"\n**Not valid**, the client did not keep up: {names}.")
        print(f"\n{_verdict(grouped, 'on time and correct')}")
        if _is_known(usual):
            print(f"\n{_verdict(usual, f'{AS_EXPECTED},')}")
    print()


def describe(setting: Setting, runs: Runs, usual_runs: Runs) -> dict[str, Any]:
    """Return it all as one JSON-able record; the arguments are those of `show`."""
    return {
        "benchmark": "policies",
        **asdict(setting),
        "traces": {
            trace: _described(by_policy(of_trace), by_policy(usual_runs[trace]))
            for trace, of_trace in runs.items()
        },
    }


def _described(
    grouped: Mapping[str, Sequence[Replay]], usual: Mapping[str, Sequence[Replay]]
) -> dict[str, Any]:
    return {
        "best_static": best_static(grouped),
        "lead_on_time_correct": lead(grouped),
        "lead_as_expected": lead(usual) if _is_known(usual) else None,
        "policies": {
            policy: {
                "seeds": [
                    {"seed": one.seed, "valid": one.kept_up, "lag_p99_s": one.lag_p99_s}
                    | one.figures.to_json()
                    | {"on_time_correct_as_expected": other.figures.on_time_correct}
                    for one, other in zip(replays, usual[policy], strict=True)
                ],
                "over_seeds": {
                    name: spread and asdict(spread)
                    for name, spread in over_seeds([one.figures for one in replays]).items()
                },
            }
            for policy, replays in grouped.items()
        },
    }


def file_of(folder: Path, trace: str, seed: int, what: str) -> Path:
    """Return where a policy's replay, or the `CAPACITY` measured before a seed's first, lies."""
    return folder / f"{_slug(trace)}_seed{seed}_{_slug(what)}.json"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name)


def draw(folder: Path, setting: Setting, runs: Runs) -> None:
    """Draw each trace's first seed: adaptive policies, r=0 and the best static degree.

    The capacities are those that were measured before this trace and seed.
    """
    for trace, of_trace in runs.items():
        grouped = by_policy(of_trace)
        drawn = {LOWEST, best_static(grouped)}
        lines = [
            PlottedRun(policy, replays[0].fates, replays[0].figures.seconds)
            for policy, replays in grouped.items()
            if policy in drawn or not policy.startswith("static")
        ]
        seed = grouped[lines[0].name][0].seed
        measured = file_of(folder, trace, seed, CAPACITY)
        now = Setting.load(measured) if measured.is_file() else setting
        plot_timeline(
            folder / f"{_slug(trace)}.png",
            lines,
            setting.slo_s,
            title=f"{trace}, seed {seed}",
            capacities={
                "capacity r=0": now.capacity,
                f"capacity r={now.highest}": now.highest_capacity,
            },
        )


def by_policy(runs: Sequence[PolicyRun]) -> dict[str, list[Replay]]:
    """Return each policy's replays by seed; policies in the order they come."""
    grouped: dict[str, list[Replay]] = {}
    for run in sorted(runs, key=lambda run: run.replay.seed):
        grouped.setdefault(run.policy, []).append(run.replay)
    return {policy: grouped[policy] for policy in dict.fromkeys(run.policy for run in runs)}


def best_static(grouped: Mapping[str, Sequence[Replay]]) -> str | None:
    """Return the static degree with the best score, as hindsight knows it."""
    statics = [policy for policy in grouped if policy.startswith("static")]
    return max(statics, key=lambda policy: _score(grouped[policy]), default=None)


def lead(grouped: Mapping[str, Sequence[Replay]]) -> float | None:
    """Return the default's score less that of the best other; None without either."""
    others = [_score(replays) for policy, replays in grouped.items() if policy != DEFAULT]
    return _score(grouped[DEFAULT]) - max(others) if DEFAULT in grouped and others else None


def _score(replays: Sequence[Replay]) -> float:
    """Median share of on time and correct; where nobody knows what is correct, attainment."""
    figures = [replay.figures for replay in replays]
    shares = [f.attainment if f.on_time_correct is None else f.on_time_correct for f in figures]
    return statistics.median(share or 0.0 for share in shares)


def _is_known(grouped: Mapping[str, Sequence[Replay]]) -> bool:
    """Whether every replay knows its share of on time and correct."""
    shares = [one.figures.on_time_correct for replays in grouped.values() for one in replays]
    return None not in shares


def _verdict(grouped: Mapping[str, Sequence[Replay]], what: str) -> str:
    ahead = lead(grouped)
    if ahead is None:
        return ""
    others = {policy: _score(replays) for policy, replays in grouped.items() if policy != DEFAULT}
    best = max(others, key=lambda policy: others[policy])
    word = "ahead of" if ahead >= 0 else "behind"
    return (
        f"`{DEFAULT}` is {100 * abs(ahead):.2f} points of {what} {word} the best of the others, "
        f"{best}."
    )
