"""Which policy is best on a machine like this one? All of them, at the pace of every replay.

    python benchmarks/policies.py --output runs/policies …           the replays
    python benchmarks/paired_policies.py --replays runs/policies \
        --belief weights/vit_tiny_patch16_224/profile.json

One policy's replay meets a slow spell of a shared machine and another's does not, so real replays
of a few seeds tell policies apart only where much lies between them. Here each policy is simulated
with the arrivals and at the pace of each finished replay of a trace, whoever decided in it: that
pairs them. See `simulated_replays` for how a replay's pace is found, and for how far such
simulations are off.

Prints a Markdown table per trace, leads over the first policy with their standard errors, and one
final JSON line.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.policies_report import PolicyRun, Setting
from benchmarks.simulated_replays import Stage, replays_in
from server.fates import Figures
from tocom_core.latency_profile import LatencyProfile

WINDOW_S = 0.25
"""Slow spells of half a second are what most misses come from."""
POLICIES = ("demand", "threshold", "slackfit", "aimd", "static r=0", "static r=16", "static r=18")


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy at the pace of one replay."""

    replay: Path
    policy: str
    stage: Stage

    def figures(self) -> Figures:
        """Simulate it."""
        run = PolicyRun.load(self.replay)
        pace = self.stage.pace(run.replay.batches, WINDOW_S)
        return self.stage.simulate(PolicyRun(self.policy, run.replay), pace)


def main() -> None:
    """Simulate all pairs."""
    options = _parse()
    belief = LatencyProfile.load(options.belief)
    slo_s = Setting.load(options.replays / "setting.json").slo_s
    stage = Stage(belief, belief, slo_s, options.noise)
    replays: dict[str, list[Path]] = defaultdict(list)
    for path, found in replays_in(options.replays):
        replays[found["trace"]].append(path)
    if not replays:
        sys.exit(f"{options.replays} holds no replays: benchmarks/policies.py writes them there")
    rows = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for trace, paths in replays.items():
            figures = {}
            for policy in options.policies:
                print(f"{trace}: {policy}, {len(paths)} paces", file=sys.stderr, flush=True)
                trials = [Trial(path, policy, stage) for path in paths]
                figures[policy] = list(pool.map(Trial.figures, trials))
            rows += _show(trace, figures)
    print("\n" + json.dumps({"benchmark": "paired_policies", "rows": rows}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--replays", type=Path, required=True, help="output of policies.py")
    parser.add_argument("--belief", required=True, help="the real server's first profile")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--noise", type=float, default=0.2, help="of batches, beside the pace")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def _show(trace: str, figures: dict[str, list[Figures]]) -> list[dict[str, object]]:
    """Print the table of one trace and return its rows."""
    count = len(next(iter(figures.values())))
    print(f"\n## {trace}\n\nMeans over {count} paces.\n")
    print("| policy | attainment % | 99 % kept in | on time and correct % ", end="")
    print("| lead of the first, points | mean r |")
    print("|---" * 6 + "|")
    correct = {
        name: [100 * (one.on_time_correct or 0.0) for one in of] for name, of in figures.items()
    }
    first = next(iter(correct.values()))
    rows = []
    for name, of in figures.items():
        attainment = [100 * (one.attainment or 0.0) for one in of]
        lead = [best - own for best, own in zip(first, correct[name], strict=True)]
        row: dict[str, object] = {
            "trace": trace,
            "policy": name,
            "attainment": statistics.mean(attainment),
            "kept": sum(value >= 99 for value in attainment),
            "on_time_correct": statistics.mean(correct[name]),
            "lead": statistics.mean(lead),
            "lead_error": _standard_error(lead),
            "mean_r": statistics.mean(one.mean_r or 0.0 for one in of),
        }
        rows.append(row)
        print(
            f"| {name} | {row['attainment']:.2f} | {row['kept']} of {count} "
            f"| {row['on_time_correct']:.2f} "
            f"| {row['lead']:+.2f} ± {row['lead_error']:.2f} | {row['mean_r']:.1f} |"
        )
    return rows


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
