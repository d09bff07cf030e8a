"""Does the simulator tell what happens? The arrivals of real replays, simulated, side by side.

    python benchmarks/policies.py --output runs/policies …           the replays
    tocom bench --save-profile served.json --images … -- …           the machine, under load
    python benchmarks/simulated_replays.py --replays runs/policies --machine served.json \
        --belief weights/vit_tiny_patch16_224/profile.json

Each finished replay is simulated with its own arrivals, SLO and policy. What is true of the
simulated machine comes from a profile that was measured under load, on another occasion; a shared
machine has another pace by then, so its durations are scaled to the capacities at r=0 and at the
highest degree that were measured right before the replay, and between them in the degrees between
(`--as-measured` leaves them alone). What the simulated server
believes at first is what the real one believed (`--belief`). Nothing else is taken from the replay.

Prints a Markdown table per trace, medians over the seeds, and one final JSON line.
"""

import argparse
import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.policies_report import PolicyRun, Setting
from server.farm import PolicyChoice, ServerSettings, build_farm, true_machine
from server.fates import Figures, summarise
from server.simulated_requests import Arrival
from server.simulation import simulate
from tocom_core.latency_profile import LatencyProfile

RUN = re.compile(r"(?P<trace>.+)_seed(?P<seed>\d+)_(?P<policy>.+)\.json")
MOST_POINTS = 2.0
"""Asked for: attainment within so many points, in the median over the seeds."""
MOST_DEGREES = 1.0
"""And the mean degree within so many."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One replay, real and simulated."""

    trace: str
    policy: str
    seed: int
    real: Figures
    simulated: Figures

    @property
    def attainment_points(self) -> float:
        """Simulated less real, in points."""
        return 100 * ((self.simulated.attainment or 0.0) - (self.real.attainment or 0.0))

    @property
    def degrees(self) -> float:
        """Simulated less real, of the mean degree."""
        return (self.simulated.mean_r or 0.0) - (self.real.mean_r or 0.0)


def main() -> None:
    """Simulate all replays of the folder."""
    options = _parse()
    machine = LatencyProfile.load(options.machine)
    belief = LatencyProfile.load(options.belief or options.machine)
    slo_s = Setting.load(options.replays / "setting.json").slo_s
    pairs = []
    for path in sorted(options.replays.glob("*_seed*_*.json")):
        found = RUN.fullmatch(path.name)
        if found is None or found["policy"] == "capacity":
            continue
        run = PolicyRun.load(path)
        true = machine
        if not options.as_measured:
            name = f"{found['trace']}_seed{found['seed']}_capacity.json"
            true = _at_pace(machine, options.batch, Setting.load(options.replays / name))
        simulated = _simulated(run, true, belief, slo_s, options.noise)
        seed = run.replay.seed
        pairs.append(Pair(found["trace"], run.policy, seed, run.replay.figures, simulated))
    rows = [
        row for trace in dict.fromkeys(pair.trace for pair in pairs) for row in _show(trace, pairs)
    ]
    print("\n" + json.dumps({"benchmark": "simulated_replays", "rows": rows}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--replays", type=Path, required=True, help="output of policies.py")
    parser.add_argument("--machine", required=True, help="profile of tocom bench --save-profile")
    parser.add_argument("--belief", help="the real server's first profile; default: --machine")
    parser.add_argument("--noise", type=float, help="of batches; default: as the profile measured")
    parser.add_argument("--batch", type=int, default=8, help="batch size that capacity refers to")
    parser.add_argument("--as-measured", action="store_true", help="do not scale to the capacity")
    return parser.parse_args()


def _at_pace(profile: LatencyProfile, batch: int, now: Setting) -> LatencyProfile:
    """Return the profile of a machine that has these capacities at r=0 and the highest degree.

    Between the two the logarithm of the factor goes with the degree's arithmetic.
    """
    machine, work = true_machine(profile, batch), profile.work
    lowest = math.log(machine.capacity(0, batch) / now.capacity)
    highest = math.log(machine.capacity(now.highest, batch) / now.highest_capacity)
    saved = 1 - work[now.highest]

    def factor(r: int) -> float:
        share = (1 - work[r]) / saved if saved else 0.0
        return math.exp(lowest + share * (highest - lowest))

    scaled = [replace(m, seconds=m.seconds * factor(m.r)) for m in profile.measurements]
    return replace(profile, measurements=scaled)


def _simulated(
    run: PolicyRun,
    true: LatencyProfile,
    belief: LatencyProfile,
    slo_s: float,
    noise: float | None,
) -> Figures:
    """Simulate one replay's arrivals under its policy."""
    if noise is None:
        noise = statistics.median(m.spread for m in true.measurements)
    settings = ServerSettings(slo_s=slo_s)
    machine = true_machine(true, settings.max_batch_size, noise=noise)
    farm = build_farm(
        belief, machine, _policy(run.policy), settings, servers=1, seed=run.replay.seed
    )
    arrivals = [Arrival(fate.due_s) for fate in sorted(run.replay.fates, key=lambda f: f.due_s)]
    done = simulate(arrivals, farm)
    seconds = run.replay.figures.seconds
    return summarise(done.fates, slo_s, seconds=seconds, switches=done.switches)


def _policy(name: str) -> PolicyChoice:
    """Read the name that `policies.py` gives."""
    degree = re.fullmatch(r"static r=(\d+)", name)
    return PolicyChoice("static", int(degree[1])) if degree else PolicyChoice(name)


def _show(trace: str, pairs: Sequence[Pair]) -> list[dict[str, object]]:
    """Print the table of one trace and return its rows."""
    print(f"\n## {trace}\n")
    print("| policy | attainment: real | simulated | apart | mean r: real | simulated | apart |")
    print("|---" * 7 + "|")
    rows = []
    of_trace = [pair for pair in pairs if pair.trace == trace]
    for policy in dict.fromkeys(pair.policy for pair in of_trace):
        same = [pair for pair in of_trace if pair.policy == policy]
        points = statistics.median(pair.attainment_points for pair in same)
        degrees = statistics.median(pair.degrees for pair in same)
        row = {
            "trace": trace,
            "policy": policy,
            "seeds": [pair.seed for pair in same],
            "attainment_points": [pair.attainment_points for pair in same],
            "degrees": [pair.degrees for pair in same],
            "holds": abs(points) <= MOST_POINTS and abs(degrees) <= MOST_DEGREES,
        }
        rows.append(row)
        real = statistics.median(pair.real.attainment or 0.0 for pair in same)
        simulated = statistics.median(pair.simulated.attainment or 0.0 for pair in same)
        real_r = statistics.median(pair.real.mean_r or 0.0 for pair in same)
        simulated_r = statistics.median(pair.simulated.mean_r or 0.0 for pair in same)
        print(
            f"| {policy} | {100 * real:.1f} % | {100 * simulated:.1f} % | {points:+.1f} "
            f"| {real_r:.1f} | {simulated_r:.1f} | {degrees:+.1f} |"
        )
    return rows


if __name__ == "__main__":
    main()
