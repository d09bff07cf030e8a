"""Does the simulator tell what happens? The arrivals of real replays, simulated, side by side.

    python benchmarks/policies.py --output runs/policies …           the replays
    python benchmarks/simulated_replays.py --replays runs/policies \
        --belief weights/vit_tiny_patch16_224/profile.json

Each finished replay is simulated with its own arrivals, SLO and policy, twice.

*Foretold*: nothing is taken from the replay. What is true of the simulated machine comes from the
profile that `policies.py` measured under load before its first replay (`--machine` takes another).
A shared machine has another pace by then, so its durations are scaled to the capacities at r=0 and
at the highest degree that were measured right before the replay, and between them in the degrees
between (`--as-measured` leaves them alone).

*At its pace*: the machine is moreover as much slower or faster, second by second, as it was in the
replay: the time that its batches had the machine for themselves (the next one may begin before the
last is done) over what the profile says of them. That tells what the
simulation of queue, batches and choices is off by from how well the machine could be foretold.

What the simulated server believes at first is what the real one believed (`--belief`). Beside them
stands what anybody could have answered in time at that pace (`pace_bound`). Prints a Markdown table
per trace, medians over the seeds, and one final JSON line.
"""

import argparse
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.pace_bound import most_in_time
from benchmarks.policies_report import CAPACITY, PolicyRun, Setting, file_of
from server.answered_batches import own_seconds
from server.farm import PolicyChoice, ServerSettings, build_farm, true_machine
from server.fates import Figures, summarise
from server.replay import ServedBatch
from server.simulated_machine import SlowDown
from server.simulated_requests import Arrival
from server.simulation import simulate
from tocom_core.latency_profile import LatencyProfile

RUN = re.compile(r"(?P<trace>.+)_seed(?P<seed>\d+)_(?P<policy>.+)\.json")
MOST_POINTS = 2.0
"""Asked for: attainment within so many points, in the median over the seeds."""
MOST_DEGREES = 1.0
"""And the mean degree within so many."""
PACE_WINDOW_S = 1.0
BESIDE = 0.95
"""A batch with less than this share of its time for itself ran beside the one before it."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Simulated less real: attainment in points, and mean degree."""

    points: float
    degrees: float

    @classmethod
    def of(cls, simulated: Figures, real: Figures) -> "Apart":
        """Compare two summaries of the same arrivals."""
        return cls(
            100 * ((simulated.attainment or 0.0) - (real.attainment or 0.0)),
            (simulated.mean_r or 0.0) - (real.mean_r or 0.0),
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """One replay, real and simulated; `at_its_pace` is None where its batches are not known.

    `bound` is the share that could have been in time, and `slower` the median factor of its pace.
    """

    trace: str
    policy: str
    seed: int
    real: Figures
    foretold: Apart
    at_its_pace: Apart | None
    bound: float
    slower: float


def main() -> None:
    """Simulate all replays of the folder."""
    options = _parse()
    machine = LatencyProfile.load(options.machine or options.replays / "served.json")
    belief = LatencyProfile.load(options.belief) if options.belief else machine
    slo_s = Setting.load(options.replays / "setting.json").slo_s
    pairs = []
    for path, found in replays_in(options.replays):
        run = PolicyRun.load(path)
        true = machine
        if not options.as_measured:
            measured = file_of(options.replays, found["trace"], run.replay.seed, CAPACITY)
            true = _at_pace(machine, options.batch, Setting.load(measured))
        pairs.append(_pair(found["trace"], run, Stage(true, belief, slo_s, options.noise)))
    rows = [
        row for trace in dict.fromkeys(pair.trace for pair in pairs) for row in _show(trace, pairs)
    ]
    print("\n" + json.dumps({"benchmark": "simulated_replays", "rows": rows}))


def replays_in(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield the finished replays of a folder that `policies.py` wrote, and their names' parts."""
    for path in sorted(folder.glob("*_seed*_*.json")):
        found = RUN.fullmatch(path.name)
        if found is not None and found["policy"] != CAPACITY:
            yield path, found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--replays", type=Path, required=True, help="output of policies.py")
    parser.add_argument("--machine", help="profile under load; default: served.json of the replays")
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


@dataclass(frozen=True, slots=True)
class Stage:
    """What the simulations of one replay share; `noise` None is what the profile measured."""

    true: LatencyProfile
    belief: LatencyProfile
    slo_s: float
    noise: float | None

    def simulate(self, run: PolicyRun, slow_downs: Sequence[SlowDown] = ()) -> Figures:
        """Simulate one replay's arrivals under its policy."""
        noise = self.noise
        if noise is None:
            noise = statistics.median(m.spread for m in self.true.measurements)
        settings = ServerSettings(slo_s=self.slo_s)
        machine = true_machine(
            self.true, settings.max_batch_size, noise=noise, slow_downs=slow_downs
        )
        policy, seed = _policy(run.policy), run.replay.seed
        farm = build_farm(self.belief, machine, policy, settings, servers=1, seed=seed)
        arrivals = [Arrival(at_s) for at_s in sorted(fate.due_s for fate in run.replay.fates)]
        done = simulate(arrivals, farm)
        seconds = run.replay.figures.seconds
        return summarise(done.fates, self.slo_s, seconds=seconds, switches=done.switches)

    def pace(
        self, batches: Sequence[ServedBatch], window_s: float = PACE_WINDOW_S
    ) -> list[SlowDown]:
        """Return by how much the machine was slower than the profile, window by window.

        A window without a batch is as the one before it.
        """
        machine = true_machine(self.true, max((batch.size for batch in batches), default=1))
        took_s: dict[int, float] = defaultdict(float)
        should_s: dict[int, float] = defaultdict(float)
        own_s = own_seconds((batch.done_s, batch.compute_s) for batch in batches)
        for batch, seconds in zip(batches, own_s, strict=True):
            window = max(0, int((batch.done_s - seconds) / window_s))
            took_s[window] += seconds
            beside = seconds < BESIDE * batch.compute_s
            should_s[window] += machine.busy_s(batch.r, batch.size, beside=beside)
        slow_downs, factor = [], 1.0
        for window in range(max(took_s, default=-1) + 1):
            factor = took_s[window] / should_s[window] if took_s[window] else factor
            start_s = window * window_s
            slow_downs.append(SlowDown(start_s, start_s + window_s, factor))
        return slow_downs

    def bound(self, run: PolicyRun, slow_downs: Sequence[SlowDown]) -> float:
        """Return the share of a replay's images that a machine of this pace can have in time.

        Its rate is that of the best batch at the fastest degree, of the sizes that were measured.
        """
        machine = true_machine(self.true, self.true.max_batch_size)
        image_s = min(machine.busy_s(m.r, m.batch) / m.batch for m in self.true.measurements)
        arrivals_s = sorted(fate.due_s for fate in run.replay.fates)
        return most_in_time(arrivals_s, image_s, self.slo_s, slow_downs) / len(arrivals_s)


def _pair(trace: str, run: PolicyRun, stage: Stage) -> Pair:
    real = run.replay.figures
    foretold = Apart.of(stage.simulate(run), real)
    pace = stage.pace(run.replay.batches)
    paced = Apart.of(stage.simulate(run, pace), real) if pace else None
    slower = statistics.median(one.factor for one in pace) if pace else math.nan
    bound = stage.bound(run, pace) if pace else math.nan
    return Pair(trace, run.policy, run.replay.seed, real, foretold, paced, bound, slower)


def _policy(name: str) -> PolicyChoice:
    """Read the name that `policies.py` gives."""
    degree = re.fullmatch(r"static r=(\d+)", name)
    return PolicyChoice("static", int(degree[1])) if degree else PolicyChoice(name)


def _show(trace: str, pairs: Sequence[Pair]) -> list[dict[str, object]]:
    """Print the table of one trace and return its rows."""
    print(f"\n## {trace}\n\nSimulated less real, medians over the seeds.\n")
    print("| policy | seeds | real: attainment | bound | mean r ", end="")
    print("| foretold: points | degrees ", end="")
    print("| at its pace: points | degrees | slower than the profile |")
    print("|---" * 10 + "|")
    rows = []
    of_trace = [pair for pair in pairs if pair.trace == trace]
    for policy in dict.fromkeys(pair.policy for pair in of_trace):
        same = [pair for pair in of_trace if pair.policy == policy]
        foretold = [pair.foretold for pair in same]
        paced = [pair.at_its_pace for pair in same if pair.at_its_pace is not None]
        rows.append(
            {
                "trace": trace,
                "policy": policy,
                "seeds": [pair.seed for pair in same],
                "foretold": [asdict(apart) for apart in foretold],
                "at_its_pace": [asdict(apart) for apart in paced],
                "real": [pair.real.attainment for pair in same],
                "bound": [None if math.isnan(pair.bound) else pair.bound for pair in same],
                "slower": [None if math.isnan(pair.slower) else pair.slower for pair in same],
                "holds": _close(foretold),
            }
        )
        attainment = statistics.median(pair.real.attainment or 0.0 for pair in same)
        mean_r = statistics.median(pair.real.mean_r or 0.0 for pair in same)
        slower = statistics.median(pair.slower for pair in same)
        bound = statistics.median(pair.bound for pair in same)
        print(
            f"| {policy} | {len(same)} | {100 * attainment:.1f} % "
            f"| {'–' if math.isnan(bound) else f'{100 * bound:.1f} %'} | {mean_r:.1f} "
            f"| {_cells(foretold)} | {_cells(paced)} "
            f"| {'–' if math.isnan(slower) else f'{slower:.2f} ×'} |"
        )
    return rows


def _close(aparts: Sequence[Apart]) -> bool:
    points = statistics.median(apart.points for apart in aparts)
    degrees = statistics.median(apart.degrees for apart in aparts)
    return abs(points) <= MOST_POINTS and abs(degrees) <= MOST_DEGREES


def _cells(aparts: Sequence[Apart]) -> str:
    if not aparts:
        return "– | –"
    points = [apart.points for apart in aparts]
    degrees = statistics.median(apart.degrees for apart in aparts)
    spread = f" ({min(points):+.1f} … {max(points):+.1f})" if len(points) > 1 else ""
    return f"{statistics.median(points):+.1f}{spread} | {degrees:+.1f}"


if __name__ == "__main__":
    main()
