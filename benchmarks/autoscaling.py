"""Compress first, scale out second: what it wins and costs beside scaling out alone, simulated.

    python benchmarks/autoscaling.py --plot docs/autoscaling.png

A fleet behind least-outstanding routing, scaled as Kubernetes' HorizontalPodAutoscaler does it,
with replicas that take 30, 60 or 180 s to start. Compared on the same arrivals:

- compress first: policy `demand`, scaled by `tocom_capacity_demand`
- r=0, scaled by the use of processors: how servers without a dial are scaled most often
- r=0, scaled by `tocom_capacity_demand`: what the signal alone wins
- compress, scaled by the use of processors (for 60 s): what the signal wins beside compression
- compress, never scaled: as many replicas as at the beginning
- r=0, over-provisioned: as many replicas as the autoscaler may ask for, all the time

Scheduler, policy, controller and signal are the server's own. Two loads: a spike (a step that
compression carries, a ramp to twice as much, a ramp down), and with `--recording` the rate of a
recorded trace at its own pace, many times as many users (Poisson arrivals at the rate that the
recording has in each 10 s). Multiples are of one replica's capacity at r=0.

Prints a Markdown table per load, medians over the seeds, and one final JSON line.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from server.arrivals import Phase, PhasedTrace
from server.autoscaling import ScalingRules
from server.farm import PolicyChoice, ServerSettings, build_server, true_machine
from server.fates import Figures, summarise
from server.fleet_plot import FleetCurve, plot_fleets
from server.operating_table import OperatingTable
from server.recorded_arrivals import read_recording
from server.simulated_fleet import DEFAULT_TARGETS, FleetPlan, FleetUse, simulate_fleet
from server.simulated_requests import Arrival
from tocom_core.latency_profile import LatencyProfile
from tocom_core.options import command_line

PROFILE = "weights/vit_tiny_patch16_224/profile.json"
SPIKE = PhasedTrace(
    "spike",
    (
        Phase(0.5, 0.5, 45),
        Phase(1.6, 1.6, 210),
        Phase(1.6, 3.0, 30),
        Phase(3.0, 3.0, 105),
        Phase(3.0, 0.5, 30),
        Phase(0.5, 0.5, 30),
    ),
)
BIN_S = 10.0
"""The rate of a recording is taken over so long."""
MARKS = ("<!-- autoscaling -->", "<!-- end autoscaling -->")
"""Between them a document has the report; there must be both."""
COLUMNS = (
    "start-up, s", "way", "attainment", "goodput/s", "accuracy", "on time and correct", "mean r",
    "replica-hours", "most replicas", "grown/shrunk",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Way:
    """What is compared: a policy, and how the fleet is scaled."""

    name: str
    policy: PolicyChoice
    plan: FleetPlan


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation: a way, a load and a seed."""

    way: Way
    trace: PhasedTrace
    seed: int
    keep: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it found; `curve` only where it is to be drawn."""

    job: Job
    figures: Figures
    use: FleetUse
    curve: FleetCurve | None


def main() -> None:
    """Simulate all of it, print and draw."""
    options = _parse()
    traces = [SPIKE]
    if options.recording is not None:
        traces.append(_crowd(options.recording, options.start, options.seconds, options.mean))
    ways = [way for startup_s in options.startup for way in _ways(startup_s, options)]
    jobs = [
        Job(way, trace, seed, seed == options.seeds[0] and trace is SPIKE)
        for seed in options.seeds
        for trace in traces
        for way in dict.fromkeys(ways)
    ]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core each is what a simulation can use
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, _prepare, (options,)) as pool:
        found = []
        for outcome in pool.map(_run, jobs):
            found.append(outcome)
            print(f"{len(found)} of {len(jobs)}: {_told(outcome)}", file=sys.stderr, flush=True)
    _prepare(options)
    _report(options, traces, ways, found)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--profile", default=PROFILE, help="of the model on its device")
    add("--recording", type=Path, help="CSV of arrival times whose rate is replayed as well")
    add("--start", type=float, default=0.0, help="where in the recording to begin, in seconds")
    add("--seconds", type=float, default=600.0, help="how much of it")
    add("--mean", type=float, default=1.0, help="its mean, as a multiple of one replica's capacity")
    add("--startup", type=float, nargs="+", default=[30.0, 60.0, 180.0], help="seconds to start")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one set of arrivals each")
    add("--slo-ms", type=float, default=250.0, help="what counts as in time")
    add("--noise", type=float, default=0.05, help="spread of batch durations")
    add("--max-replicas", type=int, default=6, help="most that the autoscaler may ask for")
    add(
        "--document", type=Path, help="also write the report between its <!-- autoscaling --> marks"
    )
    add("--jobs", type=int, default=os.cpu_count() or 1, help="simulations side by side")
    add("--plot", type=Path, help="picture of the spike, first seed")
    options = parser.parse_args()
    document = options.document
    if document is not None and not all(mark in document.read_text("utf-8") for mark in MARKS):
        parser.error(f"--document {document}: it has no lines {MARKS[0]} and {MARKS[1]}")
    return options


def _crowd(path: Path, start_s: float, seconds: float, mean: float) -> PhasedTrace:
    """Return a load with a recording's rate over time, at its own pace, scaled to a mean."""
    times = np.array(read_recording(path))
    inside = times[(times >= start_s) & (times < start_s + seconds)] - start_s
    counts = np.histogram(inside, np.arange(0, seconds + BIN_S, BIN_S))[0]
    multiples = mean * counts / counts.mean()
    return PhasedTrace(path.stem, tuple(Phase(m, m, BIN_S) for m in multiples.tolist()))


def _ways(startup_s: float, options: argparse.Namespace) -> list[Way]:
    """Return what is compared; what does not start anything is the same for any delay."""
    most = options.max_replicas
    compress, still = PolicyChoice("demand"), PolicyChoice("static", 0)
    scaled = {
        signal: FleetPlan(1, signal, ScalingRules(target, 1, most), startup_s)
        for signal, target in DEFAULT_TARGETS.items()
    }
    return [
        Way("compress first, then capacity demand", compress, scaled["capacity-demand"]),
        Way("r=0, CPU", still, scaled["cpu"]),
        Way("r=0, capacity demand", still, scaled["capacity-demand"]),
        *([Way("compress, CPU", compress, scaled["cpu"])] if startup_s == 60 else []),
        Way("compress, 1 replica", compress, FleetPlan(1, startup_s=0.0)),
        Way(f"r=0, {most} replicas", still, FleetPlan(most, startup_s=0.0)),
    ]


_setting: dict[str, Any] = {}
"""What every simulation of this process shares; a profile is read once."""


def _prepare(options: argparse.Namespace) -> None:
    profile = LatencyProfile.load(options.profile)
    settings = ServerSettings(slo_s=options.slo_ms / 1000)
    machine = true_machine(profile, settings.max_batch_size, noise=options.noise)
    table = OperatingTable(
        profile, max_batch_size=settings.max_batch_size, max_batch_s=settings.max_batch_s
    )
    rates = {point.r: machine.capacity(point.r, point.batch_size) for point in table.points()}
    _setting.update(profile=profile, settings=settings, machine=machine, rates=rates)


def _run(job: Job) -> Outcome:
    """Simulate one."""
    profile, settings = _setting["profile"], _setting["settings"]
    rate = _setting["rates"][profile.degrees[0]]
    what = profile, _setting["machine"], job.way.policy, settings
    arrivals = [Arrival(at) for at in job.trace.times(rate, job.seed)]
    seconds = job.trace.seconds(rate)
    run, use = simulate_fleet(
        arrivals,
        lambda clock, number: build_server(*what, clock, job.seed, number),
        job.way.plan,
        seconds,
    )
    figures = summarise(run.fates, settings.slo_s, seconds=seconds, switches=run.switches)
    curve = FleetCurve(job.way.name, run.fates, use.lifetimes, seconds) if job.keep else None
    return Outcome(job, figures, use, curve)


def _report(
    options: argparse.Namespace,
    traces: Sequence[PhasedTrace],
    ways: Sequence[Way],
    found: Sequence[Outcome],
) -> None:
    rates, lowest = _setting["rates"], _setting["profile"].degrees[0]
    fastest = max(rates, key=lambda r: rates[r])
    command = command_line("python benchmarks/autoscaling.py", None)
    lines = [
        f"    {command}",
        "",
        f"One replica carries {rates[lowest]:.0f} images/s at r={lowest} and "
        f"{rates[fastest]:.0f} at r={fastest}; SLO {options.slo_ms:g} ms; 1 to "
        f"{options.max_replicas} replicas; medians over {len(options.seeds)} seeds.",
    ]
    rows = []
    for trace in traces:
        mean = sum(phase.mean * phase.seconds for phase in trace.phases) / trace.seconds(1.0)
        most = max(max(phase.first, phase.last) for phase in trace.phases)
        lines += ["", f"`{trace.name}`: {trace.seconds(1.0):g} s, mean {mean:.2f}, most {most:.2f}"]
        lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for way in sorted(dict.fromkeys(ways), key=lambda way: way.plan.signal is None):
            mine = [one for one in found if one.job.way == way and one.job.trace == trace]
            rows.append(_row(trace, way, mine))
            lines.append(_line(rows[-1]))
    if options.plot is not None:
        _plot(options, ways, found, rates[lowest])
    if options.document is not None:
        before, mark, rest = options.document.read_text("utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        text = "\n".join([before + mark, *lines, MARKS[1]]) + after
        options.document.write_text(text, "utf-8")
    print("\n".join(lines))
    print("\n" + json.dumps({"benchmark": "autoscaling", "command": command, "rows": rows}))


def _told(outcome: Outcome) -> str:
    """Return one simulation as a line of progress."""
    job, figures, use = outcome.job, outcome.figures, outcome.use
    return (
        f"{job.trace.name}, seed {job.seed}, {job.way.name}, {job.way.plan.startup_s:g} s: "
        f"{figures.attainment or 0:.1%} in time, {use.replica_hours:.2f} replica-hours"
    )


def _row(trace: PhasedTrace, way: Way, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the medians of one way on one load."""
    names = ("attainment", "goodput", "accuracy", "on_time_correct", "mean_r")
    runs = [outcome.figures for outcome in outcomes]
    uses = [outcome.use for outcome in outcomes]
    row: dict[str, Any] = {
        "trace": trace.name,
        "startup_s": way.plan.startup_s if way.plan.signal else None,
        "way": way.name,
    }
    for name in names:
        row[name] = statistics.median(getattr(run, name) or 0.0 for run in runs)
        row[f"{name}_seeds"] = [getattr(run, name) for run in runs]
    for name in ("replica_hours", "most", "grown", "shrunk"):
        row[name] = statistics.median(getattr(use, name) for use in uses)
    return row


def _line(row: dict[str, Any]) -> str:
    startup = "–" if row["startup_s"] is None else f"{row['startup_s']:g}"
    return (
        f"| {startup} | {row['way']} | {row['attainment']:.1%} | {row['goodput']:.0f} "
        f"| {row['accuracy']:.1%} | {row['on_time_correct']:.1%} | {row['mean_r']:.1f} "
        f"| {row['replica_hours']:.2f} | {row['most']:.0f} "
        f"| {row['grown']:.0f}/{row['shrunk']:.0f} |"
    )


def _plot(
    options: argparse.Namespace, ways: Sequence[Way], found: Sequence[Outcome], rate: float
) -> None:
    """Draw the spike of the first seed, a column per delay."""
    columns: dict[str, list[FleetCurve]] = {}
    for startup_s in options.startup:
        shown = [way for way in ways if way.plan.startup_s == startup_s][:3]
        columns[f"replicas start in {startup_s:g} s"] = [
            one.curve
            for way in shown
            for one in found
            if one.job.way == way and one.curve is not None
        ]
    plot_fleets(options.plot, columns, options.slo_ms / 1000, rate)


if __name__ == "__main__":
    main()
