"""A farm that grows and shrinks in simulated time: replicas that start, serve, drain and go.

The servers are those of `server.farm`, the decisions those of `server.autoscaling`; here is what
lies between them: a replica that is asked for is ready after a delay, what an autoscaler sees of
the ones that are, and which ones go first. A replica that is to go gets no more requests and
finishes those that it has, as on SIGTERM.

Two signals. `capacity-demand` is what a server exports (`server.capacity_demand`); one that starts
exports nothing yet, so it is missing. `cpu` is the share of the last period in which a batch was
running, as an autoscaler on the use of processors sees it; replicas that were not ready for the
whole of it are set aside as not ready, as Kubernetes does it. Both are read without a delay.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from server.autoscaling import Autoscaler, Readings, ScalingRules
from server.capacity_demand import CapacityDemand, OfferedLoad
from server.farm import LeastOutstanding
from server.simulated_requests import Arrival, Ledger
from server.simulated_server import SimulatedServer
from server.simulated_time import SimulatedClock, Timetable
from server.simulation import SimulatedRun, simulate

Signal = Literal["capacity-demand", "cpu"]

DEFAULT_TARGETS: Mapping[Signal, float] = {"capacity-demand": 0.8, "cpu": 0.7}
"""Mean of each signal that there should be."""
DRAINED_EVERY_S = 0.25
"""So often a replica that drains is looked at."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """How a fleet is scaled.

    Attributes:
        replicas: so many are ready when the load begins.
        signal: what the autoscaler looks at; None: it stays as it is.
        rules: what it is told.
        startup_s: from when a replica is asked for until it serves.
        every_s: how often the autoscaler decides; also the period that `cpu` is a mean of.
        steady_r: the degree that `capacity-demand` reckons with, as of the server.
    """

    replicas: int = 1
    signal: Signal | None = None
    rules: ScalingRules = field(default_factory=lambda: ScalingRules(0.8))
    startup_s: float = 60.0
    every_s: float = 15.0
    steady_r: int | None = None


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One replica's life, in seconds since the load began; infinity for what did not happen.

    Attributes:
        asked_at: when the autoscaler wanted it.
        ready_at: when it began to serve.
        leaving_at: when the autoscaler wanted it no more.
        gone_at: when it had answered its last request.
    """

    asked_at: float
    ready_at: float
    leaving_at: float
    gone_at: float


@dataclass(frozen=True, slots=True)
class FleetUse:
    """What the replicas of a run cost.

    Attributes:
        replica_hours: from when each was asked for until it was gone, or the load was over.
        most: replicas at once, starting or ready.
        grown: how often the autoscaler wanted more.
        shrunk: how often it wanted fewer.
        lifetimes: of each replica, in the order in which they were asked for.
    """

    replica_hours: float
    most: int
    grown: int
    shrunk: int
    lifetimes: tuple[Lifetime, ...]


@dataclass(slots=True, eq=False)
class _Replica:
    server: SimulatedServer
    offered: OfferedLoad
    demand: CapacityDemand
    asked_at: float
    ready_at: float = math.inf
    leaving_at: float = math.inf
    gone_at: float = math.inf
    busy_before_s: float | None = None
    """`busy_s` of the server at the last decision; None: it was not ready then."""


BuildServer = Callable[[SimulatedClock, int], SimulatedServer]
"""A fresh server on this clock, with this number."""


def simulate_fleet(
    arrivals: Sequence[Arrival], build: BuildServer, plan: FleetPlan, seconds: float
) -> tuple[SimulatedRun, FleetUse]:
    """Run one simulation of a fleet behind least-outstanding routing, until the last answer.

    Args:
        arrivals: by rising time, from 0 on.
        build: makes a replica's server.
        plan: how many there are, and how that changes.
        seconds: how long the load lasts; so long the autoscaler decides and replicas cost.

    Raises:
        ValueError: arrivals that are out of order.
    """
    fleet = _Fleet(build, plan, seconds)
    run = simulate(arrivals, fleet.serving, fleet, begin=fleet.open)
    return replace(run, switches=fleet.switches), fleet.use()


class _Fleet:
    """The replicas, the autoscaler's eyes and hands; sends each request to one of those ready.

    Attributes:
        serving: the servers that get requests, the same list all the time.
    """

    def __init__(self, build: BuildServer, plan: FleetPlan, seconds: float) -> None:
        self._build = build
        self._plan = plan
        self._seconds = seconds
        self._clock = SimulatedClock()
        self._scaler = Autoscaler(plan.rules)
        self._router = LeastOutstanding()
        self._replicas: list[_Replica] = []
        self._of_server: dict[int, _Replica] = {}
        self._most, self._grown, self._shrunk = plan.replicas, 0, 0
        for _ in range(plan.replicas):
            first = self._ask()
            first.ready_at, first.busy_before_s = 0.0, 0.0
        self.serving = [replica.server for replica in self._replicas]

    def open(self, timetable: Timetable, ledger: Ledger) -> None:
        """Take part in a simulation; the servers that serve already are told by it."""
        self._timetable, self._ledger = timetable, ledger
        if self._plan.signal is not None:
            self._look_again()

    def choose(self, servers: Sequence[SimulatedServer]) -> SimulatedServer:
        """Return the server that gets the next request."""
        chosen = self._router.choose(servers)
        self._of_server[id(chosen)].offered.add(self._clock.now, 1)
        return chosen

    @property
    def switches(self) -> int:
        """How often any replica's weights went to another degree."""
        return sum(replica.server.switches for replica in self._replicas)

    def use(self) -> FleetUse:
        """Return what it cost."""
        lives = [
            Lifetime(one.asked_at, one.ready_at, one.leaving_at, one.gone_at)
            for one in self._replicas
        ]
        paid_s = math.fsum(min(life.gone_at, self._seconds) - life.asked_at for life in lives)
        return FleetUse(paid_s / 3600, self._most, self._grown, self._shrunk, tuple(lives))

    # The autoscaler's eyes.

    def _look_again(self) -> None:
        at = self._clock.now + self._plan.every_s
        if at < self._seconds:
            self._timetable.at(at, self._scale)

    def _scale(self) -> None:
        """Let the autoscaler look, and do what it wants."""
        present = [one for one in self._replicas if one.leaving_at == math.inf]
        readings = self._cpu(present) if self._plan.signal == "cpu" else self._demand(present)
        wanted = self._scaler.decide(self._clock.now, len(present), readings)
        self._most = max(self._most, wanted)
        self._grown += wanted > len(present)
        self._shrunk += wanted < len(present)
        for _ in range(wanted - len(present)):
            self._start()
        for replica in _first_to_go(present)[: max(0, len(present) - wanted)]:
            self._let_go(replica)
        self._look_again()

    def _demand(self, present: Sequence[_Replica]) -> Readings:
        ready = [one for one in present if one.ready_at <= self._clock.now]
        values = [one.demand.value() for one in ready]
        return Readings(values, missing=len(present) - len(ready))

    def _cpu(self, present: Sequence[_Replica]) -> Readings:
        values = []
        for one in present:
            before_s = one.busy_before_s
            if one.ready_at <= self._clock.now:
                one.busy_before_s = one.server.busy_s
                if before_s is not None:
                    values.append((one.busy_before_s - before_s) / self._plan.every_s)
        return Readings(values, unready=len(present) - len(values))

    # Its hands.

    def _ask(self) -> _Replica:
        clock, offered = self._clock, OfferedLoad()
        server = self._build(clock, len(self._replicas))
        demand = CapacityDemand(offered, server.controller.status, self._plan.steady_r, clock)
        replica = _Replica(server, offered, demand, clock.now)
        self._replicas.append(replica)
        self._of_server[id(server)] = replica
        return replica

    def _start(self) -> None:
        replica = self._ask()
        self._timetable.at(self._clock.now + self._plan.startup_s, lambda: self._ready(replica))

    def _ready(self, replica: _Replica) -> None:
        if replica.gone_at < math.inf:  # wanted no more before it could serve
            return
        replica.ready_at = self._clock.now
        replica.server.open(self._timetable, self._ledger)
        self.serving.append(replica.server)

    def _let_go(self, replica: _Replica) -> None:
        replica.leaving_at = self._clock.now
        if replica.ready_at == math.inf:
            replica.gone_at = self._clock.now
            return
        self.serving.remove(replica.server)
        self._end_when_drained(replica)

    def _end_when_drained(self, replica: _Replica) -> None:
        if replica.server.outstanding:
            again = self._clock.now + DRAINED_EVERY_S
            self._timetable.at(again, lambda: self._end_when_drained(replica))
            return
        replica.gone_at = self._clock.now
        replica.server.close()


def _first_to_go(present: Sequence[_Replica]) -> list[_Replica]:
    """Order replicas as Kubernetes takes them away: those not ready first, then the newest."""
    return sorted(present, key=lambda one: (one.ready_at, one.asked_at), reverse=True)
