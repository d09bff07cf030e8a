"""Which policy for which arrivals? Kinds of load that differ in how they burst, in simulated time.

    python benchmarks/arrival_kinds.py --profile weights/vit_tiny_patch16_224/profile.json
    python benchmarks/arrival_kinds.py --profile … --noise 0.12 --wander 0.06 --overhead-ms 6 4 0.4

A policy that is tuned to one trace is good at that trace. Here are steady, stepping, clustered,
heavy-tailed, alternating and crowding arrivals, each at loads where r=0 is not enough and the
highest degree about is, on the same machine. `--wander` lets the machine's pace drift (a slow
random walk that returns, standard deviation of its logarithm), `--noise` spreads single batches,
`--overhead-ms` adds the costs of serving (before the queue, after the batch, and by how much each
arrival lengthens the running batch).

Prints a table per kind, means over the kinds, and one final JSON line.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from server.arrivals import Trace, parse_trace
from server.farm import PolicyChoice, ServerSettings, true_machine
from server.policy_trials import PolicyTrial, Scenario, TraceTrials, run_trials
from server.request_mix import parse_mix
from server.simulated_machine import SlowDown
from server.stats import FloatArray
from tocom_core.latency_profile import LatencyProfile, ServingOverhead

Rate = Callable[[FloatArray, np.random.Generator], FloatArray]
"""From times in seconds and a source of chance to multiples of the capacity at r=0."""

GRID_S = 0.01
WANDER_S = 3.0
WANDER_STEP_S = 0.5
POLICIES = ("demand", "threshold", "slackfit", "aimd", "static:0", "static:16", "static:18")


@dataclass(frozen=True, slots=True)
class RateTrace:
    """Poisson arrivals at a rate that is a function of time and chance."""

    name: str
    rate: Rate
    length_s: float

    def times(self, rate_unit: float, seed: int) -> list[float]:
        """Return arrival times; see `Trace.times`."""
        chance = np.random.default_rng(seed)
        grid = np.arange(0.0, self.length_s, GRID_S)
        counts = chance.poisson(rate_unit * GRID_S * self.rate(grid, chance))
        times = np.repeat(grid, counts) + GRID_S * chance.random(int(counts.sum()))
        return [float(at) for at in np.sort(times)]

    def seconds(self, rate_unit: float) -> float:
        """Return its length."""
        return self.length_s

    def describe(self, rate_unit: float, seed: int) -> str:
        """Name it."""
        return f"{self.name}: {self.length_s:g} s"


@dataclass(frozen=True, slots=True)
class HeavyTail:
    """Renewals with Pareto-distributed gaps: long silences, and crowds in between."""

    name: str
    multiple: float
    shape: float
    length_s: float

    def times(self, rate_unit: float, seed: int) -> list[float]:
        """Return arrival times; see `Trace.times`."""
        count = math.ceil(2 * self.multiple * rate_unit * self.length_s)
        gaps = np.random.default_rng(seed).pareto(self.shape, count)
        times = np.cumsum(gaps / gaps.mean() / (self.multiple * rate_unit))
        return [float(at) for at in times[times < self.length_s]]

    def seconds(self, rate_unit: float) -> float:
        """Return its length."""
        return self.length_s

    def describe(self, rate_unit: float, seed: int) -> str:
        """Name it."""
        return f"{self.name}: {self.length_s:g} s"


def alternating(low: float, high: float, low_s: float, high_s: float) -> Rate:
    """Two rates in turn, each for an exponentially distributed time of this mean."""

    def rate(times: FloatArray, chance: np.random.Generator) -> FloatArray:
        found = np.empty(len(times))
        at, is_high = 0.0, False
        while at <= times[-1]:
            found[times >= at] = high if is_high else low
            at += chance.exponential(high_s if is_high else low_s)
            is_high = not is_high
        return found

    return rate


def crowds(times: FloatArray, chance: np.random.Generator) -> FloatArray:
    """Return a slow wave, and four flash crowds that come at once and fade within seconds."""
    found: FloatArray = 0.5 + 0.3 * np.sin(2 * np.pi * times / 60)
    for start_s in chance.random(4) * times[-1]:
        passed_s = np.maximum(0.0, times - start_s)
        found = found + np.where(times >= start_s, 1.2 * np.exp(-passed_s / 4), 0.0)
    return found


KINDS: tuple[Trace, ...] = (
    parse_trace("constant:1.2x60"),
    parse_trace("step:0.5x3,1.5x60,0.5x5"),
    parse_trace("ramp:0.2-1.7x90"),
    parse_trace("gamma:0.9x60,cv2=1"),
    parse_trace("gamma:0.9x60,cv2=4"),
    parse_trace("gamma:0.9x60,cv2=8"),
    HeavyTail("Pareto gaps of shape 1.6, 0.8 ×", 0.8, 1.6, 100.0),
    RateTrace("0.3 and 1.6 × in turn, 3 and 2 s", alternating(0.3, 1.6, 3.0, 2.0), 120.0),
    RateTrace("0.2 and 2.5 × in turn, 0.5 and 0.2 s", alternating(0.2, 2.5, 0.5, 0.2), 120.0),
    RateTrace("a wave with four flash crowds", crowds, 120.0),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy on one kind of arrivals, means over the seeds."""

    kind: str
    policy: str
    violations_percent: float
    on_time_correct_percent: float
    gap_points: float
    mean_r: float
    switches_per_s: float

    @classmethod
    def of(cls, trials: TraceTrials, policy: Sequence[PolicyTrial]) -> "Row":
        """Average a policy's seeds."""
        figures = [trial.figures for trial in policy]
        return cls(
            trials.name,
            str(policy[0].policy),
            statistics.fmean(100 * one.violations / one.offered for one in figures),
            statistics.fmean(100 * (one.on_time_correct or 0.0) for one in figures),
            statistics.fmean(trial.gap_points or 0.0 for trial in policy),
            statistics.fmean(one.mean_r or 0.0 for one in figures),
            statistics.fmean(one.switches / one.seconds for one in figures),
        )

    def line(self, best: bool) -> str:
        """Return it as a row of a Markdown table."""
        correct = f"{self.on_time_correct_percent:.2f}"
        return (
            f"| {self.policy} | {self.violations_percent:.2f} "
            f"| {f'**{correct}**' if best else correct} | {self.gap_points:.2f} "
            f"| {self.mean_r:.1f} | {self.switches_per_s:.1f} |"
        )


def main() -> None:
    """Simulate every policy on every kind."""
    options = _parse()
    scenario = _scenario(options)
    policies = [_policy(name) for name in options.policies]
    rows: list[Row] = []
    for trace in KINDS:
        trials = run_trials(
            scenario,
            trace,
            trace.name,
            1.0,
            options.seeds,
            policies,
            tell=lambda line: print(line, file=sys.stderr),
            clock=time.perf_counter,
        )
        found = [Row.of(trials, policy) for policy in trials.trials]
        _show(trace.name, found)
        rows += found
    _show("Mean over the kinds", [_mean(rows, str(policy)) for policy in policies])
    settings = {name: value for name, value in vars(options).items() if name != "policies"}
    result = {"benchmark": "arrival_kinds", **settings, "slo_s": scenario.settings.slo_s}
    print("\n" + json.dumps(result | {"rows": [_json(row) for row in rows]}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--slo-ms", type=float, default=250.0)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--wander", type=float, default=0.0)
    parser.add_argument("--overhead-ms", type=float, nargs=3, default=[0.0, 0.0, 0.0])
    parser.add_argument("--switch-ms", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    return parser.parse_args()


def _scenario(options: argparse.Namespace) -> Scenario:
    """Return the machine and the servers' settings; the capacity is that of r=0."""
    overhead = ServingOverhead(*(ms / 1000 for ms in options.overhead_ms))
    profile = replace(LatencyProfile.load(options.profile), serving=overhead)
    settings = ServerSettings(slo_s=options.slo_ms / 1000)
    longest_s = max(trace.seconds(1.0) for trace in KINDS) + 10.0
    machine = true_machine(
        profile,
        settings.max_batch_size,
        noise=options.noise,
        switch_s=options.switch_ms / 1000,
        slow_downs=_wander(options.wander, longest_s) if options.wander else (),
    )
    return Scenario(profile, machine, settings, parse_mix(()), 1, machine.capacity(0, 8))


def _wander(spread: float, seconds: float) -> list[SlowDown]:
    """Return a pace that drifts: a first-order autoregressive process in the logarithm."""
    chance = np.random.default_rng(1)
    memory = math.exp(-WANDER_STEP_S / WANDER_S)
    drift, found = 0.0, []
    for step in range(math.ceil(seconds / WANDER_STEP_S)):
        news = math.sqrt(1 - memory**2) * chance.standard_normal()
        drift = memory * drift + spread * news
        start_s = step * WANDER_STEP_S
        found.append(SlowDown(start_s, start_s + WANDER_STEP_S, math.exp(drift)))
    return found


def _policy(name: str) -> PolicyChoice:
    kind, _, degree = name.partition(":")
    return PolicyChoice(kind, int(degree or 0))


def _mean(rows: Sequence[Row], policy: str) -> Row:
    mine = [row for row in rows if row.policy == policy]
    means = {
        name: statistics.fmean(getattr(row, name) for row in mine)
        for name in Row.__slots__
        if name not in ("kind", "policy")
    }
    return Row("all", policy, **means)


def _show(title: str, rows: Sequence[Row]) -> None:
    best = max(rows, key=lambda row: row.on_time_correct_percent)
    print(f"\n### {title}\n")
    print(
        "| policy | violations % | on time and correct % | below the bound, points | mean r ",
        end="",
    )
    print("| switches/s |\n" + "|---" * 6 + "|")
    for row in rows:
        print(row.line(row is best), flush=True)


def _json(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__slots__}


if __name__ == "__main__":
    main()
