"""Policies on the same arrivals, beside what nobody could have surpassed.

One trial is one trace at one scale with one seed: each policy is simulated on it, and the offline
bound of those very arrivals is worked out once.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.arrivals import Trace
from server.clock import Clock
from server.errors import SettingsError
from server.farm import (
    LeastOutstanding,
    PolicyChoice,
    ServerSettings,
    build_farm,
    build_server,
)
from server.fates import Fate, Figures, summarise
from server.oracle import OfflineBound, OracleMachine, offline_bound
from server.request_mix import RequestMix
from server.simulated_fleet import FleetPlan, FleetUse, simulate_fleet
from server.simulated_machine import Machine
from server.simulated_requests import Arrival
from server.simulation import SimulatedRun, simulate
from tocom_core.latency_profile import LatencyProfile


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated, whatever the policy.

    Attributes:
        profile: what the servers believe at first.
        machine: what is true.
        settings: what the servers are told.
        mix: what requests ask for.
        servers: how many share the load.
        rate_unit: images/s that the traces' multiples refer to: the farm's capacity at r=0.
        oracle: whether to work out the bound.
        fleet: how an autoscaler changes their number; None: it does not.
    """

    profile: LatencyProfile
    machine: Machine
    settings: ServerSettings
    mix: RequestMix
    servers: int
    rate_unit: float
    oracle: bool = True
    fleet: FleetPlan | None = None

    def useful_degrees(self) -> list[int]:
        """Return all degrees at which an answer may be given: within the floor and below max_r.

        A request with its own `max_r` is served below it whatever the floor.
        """
        settings, accuracy = self.settings, self.machine.accuracy
        floor = None if self.mix.limits_r else settings.min_accuracy
        source = self.profile.r_source
        return [
            r
            for r in self.machine.batch_seconds
            if (settings.max_r is None or r <= settings.max_r)
            and (floor is None or r == source or accuracy.get(r, -1.0) >= floor)
        ]

    @property
    def accuracy_known(self) -> bool:
        """Whether it is known how often the answers at all these degrees are right."""
        return self.machine.accuracy.keys() >= set(self.useful_degrees())


@dataclass(frozen=True, slots=True)
class Bound:
    """The offline bound of one seed's arrivals; None where the accuracy is not known."""

    attainment: float
    on_time_correct: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class PolicyTrial:
    """One policy on one seed's arrivals.

    Attributes:
        figures: as the bench reports them.
        on_time_accuracy: mean expected accuracy of the answers in time; None if not known.
        oracle_accuracy: the highest possible one with as many answers in time.
        wall_s: what the simulation took, in real time.
        use: what the replicas cost, where an autoscaler changed their number.
    """

    policy: PolicyChoice
    seed: int
    fates: Sequence[Fate]
    figures: Figures
    on_time_accuracy: float | None
    oracle_accuracy: float | None
    wall_s: float
    use: FleetUse | None = None

    @property
    def gap_points(self) -> float | None:
        """How many points of accuracy the bound lies above the policy at equal attainment."""
        if self.oracle_accuracy is None or self.on_time_accuracy is None:
            return None
        return 100 * (self.oracle_accuracy - self.on_time_accuracy)


@dataclass(frozen=True, slots=True)
class TraceTrials:
    """All policies and seeds on one trace at one scale.

    Attributes:
        name: of the trace.
        scale: by which its rates were multiplied.
        described: per seed, what was replayed.
        bounds: per seed; empty without the oracle.
        trials: by policy, in the order given, and within a policy by seed.
        best_static: the policy that a search found; None without a search.
    """

    name: str
    scale: float
    described: Sequence[str]
    bounds: Sequence[Bound]
    trials: Sequence[Sequence[PolicyTrial]]
    best_static: PolicyChoice | None = None


def run_trials(
    scenario: Scenario,
    trace: Trace,
    name: str,
    scale: float,
    seeds: Sequence[int],
    policies: Sequence[PolicyChoice],
    *,
    search: Sequence[int] = (),
    tell: Callable[[str], None] = lambda text: None,
    clock: Clock,
) -> TraceTrials:
    """Simulate each policy on each seed's arrivals.

    Args:
        scenario: everything else.
        trace: already scaled.
        name: of the trace before it was scaled; for the record, as is `scale`.
        scale: by which its rates were multiplied.
        seeds: one set of arrivals each.
        policies: in the order of the report.
        search: degrees among which the best one for `static` is sought, by on-time-and-correct,
            or by attainment where accuracy is not known. It is added to the policies.
        tell: gets a line on what is being done.
        clock: measures how long a simulation takes.

    Raises:
        SettingsError: a policy cannot be built, or a trace without arrivals.
    """
    loads = [_Load(scenario, trace, seed) for seed in seeds]
    best = None
    if search:
        choices = [PolicyChoice("static", r) for r in search]
        tell(f"{name} x {scale:g}: searching the best of {len(choices)} static degrees")
        best = max(choices, key=lambda choice: _merit([load.run(choice, clock) for load in loads]))
        policies = [*(policy for policy in policies if policy != best), best]
    trials = []
    for policy in policies:
        tell(f"{name} x {scale:g}: {policy}")
        trials.append([load.run(policy, clock) for load in loads])
    described = [trace.describe(scenario.rate_unit, seed) for seed in seeds]
    bounds = [bound for bound in (load.bound() for load in loads) if bound is not None]
    return TraceTrials(name, scale, described, bounds, trials, best)


class _Load:
    """One seed's arrivals, and their bound."""

    def __init__(self, scenario: Scenario, trace: Trace, seed: int) -> None:
        self._scenario = scenario
        self._seed = seed
        self._seconds = trace.seconds(scenario.rate_unit)
        self._arrivals = scenario.mix.arrivals(trace.times(scenario.rate_unit, seed), seed)
        if not self._arrivals:
            raise SettingsError(
                f"trace {trace.name!r} has no arrivals with seed {seed} at "
                f"{scenario.rate_unit:g} images/s; make it longer or its rates higher"
            )
        self._oracle = _oracle(scenario, self._arrivals) if scenario.oracle else None

    def run(self, policy: PolicyChoice, clock: Clock) -> PolicyTrial:
        """Simulate one policy."""
        scenario = self._scenario
        began = clock()
        run, use = self._simulate(policy)
        wall_s = clock() - began
        figures = summarise(
            run.fates, scenario.settings.slo_s, seconds=self._seconds, switches=run.switches
        )
        mine = best = None
        if figures.attainment and figures.on_time_correct is not None:
            mine = figures.on_time_correct / figures.attainment
            if self._oracle is not None and scenario.accuracy_known:
                best = self._oracle.accuracy_at(figures.attainment)
        return PolicyTrial(policy, self._seed, run.fates, figures, mine, best, wall_s, use)

    def _simulate(self, policy: PolicyChoice) -> tuple[SimulatedRun, FleetUse | None]:
        """Run it on fresh servers, as many as there are, or as an autoscaler wants."""
        scenario = self._scenario
        what = scenario.profile, scenario.machine, policy, scenario.settings
        if scenario.fleet is None:
            farm = build_farm(*what, servers=scenario.servers, seed=self._seed)
            return simulate(self._arrivals, farm, LeastOutstanding()), None
        return simulate_fleet(
            self._arrivals,
            lambda clock, number: build_server(*what, clock, self._seed, number),
            scenario.fleet,
            self._seconds,
        )

    def bound(self) -> Bound | None:
        """Return what cannot be surpassed; None if nobody asked."""
        if self._oracle is None:
            return None
        attainment = self._oracle.attainment()
        if not self._scenario.accuracy_known:
            return Bound(attainment, None, None)
        accuracy = self._oracle.accuracy_at(attainment)
        return Bound(attainment, self._oracle.correct_share(), accuracy)


def _oracle(scenario: Scenario, arrivals: Sequence[Arrival]) -> OfflineBound:
    """Bound what the farm can do; where accuracies are not known, all count alike."""
    machine, degrees = scenario.machine, scenario.useful_degrees()
    known = scenario.accuracy_known
    return offline_bound(
        [arrival.at_s for arrival in arrivals],
        OracleMachine(
            {r: machine.batch_seconds[r] for r in degrees},
            {r: machine.accuracy[r] if known else 1.0 for r in degrees},
            scenario.servers,
            machine.overhead.before_queue_s,
            machine.overhead.after_batch_s,
            machine.overhead.interference_s,
            machine.lanes,
        ),
        scenario.settings.slo_s,
        [arrival.max_r for arrival in arrivals],
    )


def _merit(trials: Sequence[PolicyTrial]) -> float:
    """Return what the search for the best static degree goes by."""
    shares = [t.figures.on_time_correct for t in trials if t.figures.on_time_correct is not None]
    if len(shares) < len(trials):
        shares = [t.figures.attainment or 0.0 for t in trials]
    return statistics.median(shares)
