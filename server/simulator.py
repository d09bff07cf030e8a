"""`tocom simulate`: what would become of these arrivals, in simulated time.

    tocom simulate --profile profile.json --trace step --policy demand static:0 aimd
    tocom simulate --profile profile.json --trace arrivals.csv --scale 0.2 0.4 --search-static

The scheduler, controller and policies are the server's own; machine and requests are made up from
a profile (`tocom profile`, or `tocom bench --save-profile` for the overheads of serving too) and a
trace (`server.arrivals`). Beside each policy stands the offline bound (`server.oracle`). The report
and one last line of JSON go to stdout, progress to stderr.
"""

import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from server.arrivals import Trace, parse_trace
from server.autoscaling import ScalingRules
from server.bounds import Bounds
from server.errors import BadParameter, SettingsError
from server.farm import PolicyChoice, ServerSettings, true_machine
from server.fates import write_requests
from server.fleet_plot import FleetCurve, plot_fleets
from server.operating_table import OperatingTable
from server.policies import BUILDERS
from server.policy_trials import Scenario, TraceTrials, run_trials
from server.request_mix import parse_mix
from server.simulate_options import SimulateOptions, parse_slow_down
from server.simulated_fleet import DEFAULT_TARGETS, FleetPlan
from server.simulated_machine import Machine
from server.simulation_report import SimulationReport, as_json, as_markdown
from server.timeline_plot import PlottedRun, plot_timeline
from tocom_core.latency_profile import LatencyProfile
from tocom_core.options import command_line, parse_options

PROG = "tocom simulate"
DESCRIPTION = "Replay a trace of arrivals in simulated time, policy beside policy."
SLO_FACTOR = 10
"""The promised latency as a multiple of a single request's at r=0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print the report and return the exit code.

    Raises:
        SettingsError: an option is wrong, or does not fit the profile.
        ProfileError: the profile cannot be read.
    """
    options = parse_options(SimulateOptions, argv, PROG, DESCRIPTION)
    command = command_line(PROG, argv)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("--plot needs Matplotlib: pip install 'tocom-serve[plots]'")
    runs = list(itertools.product(options.scale, options.trace))
    traces = [_trace(options, text, scale) for scale, text in runs]
    profile = LatencyProfile.load(options.profile)
    scenario, report = _prepare(options, profile, command)
    policies, search = _policies(options, profile, scenario.settings)
    for number, ((scale, text), trace) in enumerate(zip(runs, traces, strict=True), 1):
        found = run_trials(
            scenario,
            trace,
            text,
            scale,
            options.seeds,
            policies,
            search=search,
            tell=lambda line: print(line, file=sys.stderr),
            clock=time.perf_counter,
        )
        report.traces.append(found)
        _keep(options, scenario, found, number, len(runs))
    _write(options, report)
    print(as_markdown(report))
    print(json.dumps(as_json(report), allow_nan=False))
    return 0


def _trace(options: SimulateOptions, text: str, scale: float) -> Trace:
    return parse_trace(text, scale=scale, duration_s=options.duration, start_s=options.start)


def _prepare(
    options: SimulateOptions, profile: LatencyProfile, command: str
) -> tuple[Scenario, SimulationReport]:
    """Work out machine, SLO and capacity, and say how."""
    largest = options.max_batch_size or profile.max_batch_size
    slow_downs = [parse_slow_down(text) for text in options.slow]
    machine = true_machine(
        profile,
        largest,
        switch_s=options.switch_ms / 1000,
        noise=options.noise,
        slow_downs=slow_downs,
    )
    lowest, overhead = profile.degrees[0], machine.overhead
    single_s = overhead.before_queue_s + machine.batch_seconds[lowest][0] + overhead.after_batch_s
    slo_s = SLO_FACTOR * single_s if options.slo_ms is None else options.slo_ms / 1000
    settings = ServerSettings(
        slo_s=slo_s,
        max_batch_size=largest,
        max_queue_delay_s=options.max_queue_delay_ms / 1000,
        queue_size=options.queue_size,
        shed_late=options.shed_late,
        dwell_s=options.dwell_s,
        max_r=options.max_r,
        min_accuracy=options.min_accuracy,
    )
    capacities = _capacities(profile, machine, settings)
    rate_unit = options.servers * (options.capacity or capacities[lowest])
    scenario = Scenario(
        profile,
        machine,
        settings,
        parse_mix(options.mix),
        options.servers,
        rate_unit,
        options.oracle and options.autoscale == "none",
        _fleet(options),
    )
    why = "as given"
    if options.slo_ms is None:
        why = f"{SLO_FACTOR} times the {1000 * single_s:.1f} ms of a single request at r={lowest}"
    device = profile.device.get("name", "a device without a name")
    report = SimulationReport(
        command, f"{options.profile} ({device})", slo_s, why, options.servers, capacities
    )
    report.notes += _notes(options, profile, scenario)
    return scenario, report


def _fleet(options: SimulateOptions) -> FleetPlan | None:
    """Return how the number of servers changes, if an autoscaler was asked for."""
    if options.autoscale == "none":
        return None
    rules = ScalingRules(
        options.scale_target or DEFAULT_TARGETS[options.autoscale],
        options.servers,
        options.max_replicas,
        down_window_s=options.scale_down_s,
    )
    return FleetPlan(
        options.servers,
        options.autoscale,
        rules,
        options.startup_s,
        options.scale_every_s,
        options.steady_r,
    )


def _capacities(
    profile: LatencyProfile, machine: Machine, settings: ServerSettings
) -> dict[int, float]:
    """Return images/s of the lowest and the fastest degree, in the batches they are served in."""
    table = OperatingTable(
        profile, max_batch_size=settings.max_batch_size, max_batch_s=settings.max_batch_s
    )
    rates = {p.r: machine.capacity(p.r, p.batch_size) for p in table.points()}
    fastest = max(rates, key=lambda r: rates[r])
    return {r: rates[r] for r in (profile.degrees[0], fastest)}


def _notes(options: SimulateOptions, profile: LatencyProfile, scenario: Scenario) -> list[str]:
    notes = []
    if options.capacity is not None:
        notes.append(f"the trace refers to {options.capacity:g} images/s a server, as given")
    if profile.serving is None:
        notes.append("the profile knows no overheads of serving (tocom bench --save-profile does)")
    if profile.lanes > 1:
        notes.append(f"batches are shared out to {profile.lanes} lanes, as the profile notes")
    if scenario.oracle and options.noise:
        notes.append("with noise the oracle bounds the mean machine, not each lucky draw")
    if scenario.fleet is not None:
        notes.append(
            f"autoscaled by {options.autoscale}, target {scenario.fleet.rules.target:g}, from "
            f"{options.servers} to {options.max_replicas} servers, ready {options.startup_s:g} s "
            "after they are asked for; multiples refer to the servers at the beginning"
        )
    if not scenario.accuracy_known:
        notes.append("the profile does not know the accuracy of every degree: nothing on it")
    return notes


def _policies(
    options: SimulateOptions, profile: LatencyProfile, settings: ServerSettings
) -> tuple[list[PolicyChoice], list[int]]:
    """Return the policies asked for, and the degrees to search if a search is."""
    table = OperatingTable(
        profile, max_batch_size=settings.max_batch_size, max_batch_s=settings.max_batch_s
    )
    try:
        bounds = Bounds(
            table,
            profile.r_source,
            max_r=settings.max_r,
            min_accuracy=settings.min_accuracy,
        )
    except BadParameter as error:
        raise SettingsError(error.detail) from error
    allowed = [point.r for point in bounds.allowed()]
    offered = [point.r for point in bounds.offered()]
    texts = [text for given in options.policy for text in given.split(",")]
    choices = [_policy(text, allowed, offered) for text in texts]
    return list(dict.fromkeys(choices)), offered if options.search_static else []


def _policy(text: str, allowed: Sequence[int], offered: Sequence[int]) -> PolicyChoice:
    name, colon, degree = text.partition(":")
    if name not in BUILDERS or (bool(colon) != (name == "static")):
        expected = ", ".join("static:R" if known == "static" else known for known in BUILDERS)
        raise SettingsError(f"--policy {text!r}: expected {expected}, static:min or static:max")
    if name != "static":
        return PolicyChoice(name)
    if degree in ("min", "max"):
        return PolicyChoice(name, offered[0 if degree == "min" else -1])
    if not degree.isdecimal() or int(degree) not in allowed:
        known = ", ".join(map(str, allowed))
        raise SettingsError(
            f"--policy {text!r}: expected one of the degrees {known} of this profile that "
            "--max-r and --min-accuracy allow, or min or max"
        )
    return PolicyChoice(name, int(degree))


def _keep(
    options: SimulateOptions, scenario: Scenario, found: TraceTrials, number: int, total: int
) -> None:
    """Draw the first seed, and write what became of each request, if that was asked for."""
    if options.plot is not None:
        path = Path(options.plot)
        path = path if total == 1 else path.with_stem(f"{path.stem}-{number}")
        _plot(path, scenario, found)
    if options.output is not None:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        for trial in (trial for trials in found.trials for trial in trials):
            policy = str(trial.policy).replace(":", "-")
            name = f"requests-{number}-{policy}-seed{trial.seed}.csv"
            write_requests(folder / name, trial.fates)


def _plot(path: Path, scenario: Scenario, found: TraceTrials) -> None:
    """Draw the first seed: requests over time, and the servers too if their number changes."""
    firsts = [trials[0] for trials in found.trials]
    title = f"{found.name} × {found.scale:g}, simulated"
    slo_s = scenario.settings.slo_s
    if scenario.fleet is not None:
        curves = [
            FleetCurve(str(trial.policy), trial.fates, trial.use.lifetimes, trial.figures.seconds)
            for trial in firsts
            if trial.use is not None
        ]
        plot_fleets(path, {"": curves}, slo_s, scenario.rate_unit / scenario.servers, title=title)
        return
    runs = [PlottedRun(str(trial.policy), trial.fates, trial.figures.seconds) for trial in firsts]
    capacity = {f"capacity at r={scenario.profile.degrees[0]}": scenario.rate_unit}
    plot_timeline(path, runs, slo_s, title=title, capacities=capacity)


def _write(options: SimulateOptions, report: SimulationReport) -> None:
    if options.output is not None:
        folder = Path(options.output)
        text = json.dumps(as_json(report), indent=2, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")
