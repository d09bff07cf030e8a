"""Fleets in simulated time: delays, draining, what it costs, and what an autoscaler sees."""

import itertools
import math
from collections.abc import Sequence

import pytest

from server.autoscaling import ScalingRules
from server.farm import LeastOutstanding, PolicyChoice, ServerSettings, build_farm, build_server
from server.fates import summarise
from server.simulated_fleet import FleetPlan, FleetUse, Signal, simulate_fleet
from server.simulated_requests import Arrival
from server.simulation import SimulatedRun, simulate
from tests.server.simulated_profiles import LARGEST, SLO_S, batch_s, machine, profile

SETTINGS = ServerSettings(SLO_S, LARGEST, max_queue_delay_s=0.0)
CAPACITY = LARGEST / batch_s(0, LARGEST)
STATIC, DEMAND = PolicyChoice("static", 0), PolicyChoice("demand")


def load(*phases: tuple[float, float]) -> tuple[list[float], float]:
    """Evenly spaced arrivals at multiples of one server's capacity, each for some seconds."""
    times, began = [], 0.0
    for multiple, seconds in phases:
        rate = multiple * CAPACITY
        times += [began + i / rate for i in range(round(rate * seconds))]
        began += seconds
    return times, began


def plan(
    signal: Signal | None = "capacity-demand", startup_s: float = 60.0, **rules: float
) -> FleetPlan:
    """A fleet of one that may grow to five."""
    target = 0.7 if signal == "cpu" else 0.8
    told = ScalingRules(target, **{"max_replicas": 5, **rules})  # type: ignore[arg-type]
    return FleetPlan(1, signal, told, startup_s)


def run(
    times: Sequence[float], seconds: float, how: FleetPlan, policy: PolicyChoice = STATIC
) -> tuple[SimulatedRun, FleetUse]:
    """Simulate a fleet of servers with the small profile."""
    return simulate_fleet(
        [Arrival(time) for time in times],
        lambda clock, n: build_server(profile(), machine(), policy, SETTINGS, clock, 0, n),
        how,
        seconds,
    )


def attainment(found: SimulatedRun, first_s: float, last_s: float) -> float:
    """The share in time of what was due in this stretch."""
    fates = [fate for fate in found.fates if first_s <= fate.due_s < last_s]
    return summarise(fates, SLO_S).attainment or 0.0


def test_a_fleet_that_is_never_scaled_is_a_farm() -> None:
    """The same servers behind the same routing give the same answers."""
    times, seconds = load((1.7, 10))
    how = FleetPlan(2, None, startup_s=0.0)
    found, use = run(times, seconds, how)
    farm = build_farm(profile(), machine(), STATIC, SETTINGS, servers=2)
    assert found == simulate([Arrival(time) for time in times], farm, LeastOutstanding())
    assert (use.most, use.grown, use.shrunk) == (2, 0, 0)
    assert use.replica_hours == pytest.approx(2 * seconds / 3600)


@pytest.mark.parametrize("startup_s", [30.0, 90.0])
def test_what_is_asked_for_serves_after_the_delay(startup_s: float) -> None:
    """Asked for at the first decision after the step, ready so much later, then enough."""
    times, seconds = load((0.5, 60), (2.3, 180))
    found, use = run(times, seconds, plan(startup_s=startup_s))
    added = use.lifetimes[1:]
    assert len(added) == 2  # 2.3 / 0.8 is just under 3
    assert all(life.ready_at == life.asked_at + startup_s for life in added)
    # At 75 s the window holds the step whole.
    assert max(life.asked_at for life in added) <= 90.0
    ready_at = max(life.ready_at for life in added)
    assert attainment(found, 70.0, ready_at - 20) < 0.7
    assert attainment(found, ready_at + 5, seconds) > 0.99
    assert {record.server for record in found.batches if record.ended_at < ready_at - 20} == {0}


def test_a_replica_costs_from_when_it_is_asked_for() -> None:
    """Starting is paid for, and nothing after the load is over."""
    times, seconds = load((2.3, 120))
    _, use = run(times, seconds, plan(startup_s=60.0))
    paid_s = [min(life.gone_at, seconds) - life.asked_at for life in use.lifetimes]
    assert use.replica_hours == pytest.approx(math.fsum(paid_s) / 3600)
    assert use.replica_hours > (seconds + 2 * (seconds - 30)) / 3600


def test_shrinks_after_the_window_newest_first_without_losing_anybody() -> None:
    """Who is to go gets nothing new and finishes what it has."""
    times, seconds = load((2.2, 120), (0.2, 120))
    found, use = run(times, seconds, plan(startup_s=15.0, down_window_s=30.0), DEMAND)
    first, *others = use.lifetimes
    assert first.leaving_at == math.inf
    assert others and all(150 <= life.leaving_at <= 200 for life in others)
    assert all(life.leaving_at <= life.gone_at <= life.leaving_at + 1 for life in others)
    gone = {number + 1: life.gone_at for number, life in enumerate(others)}
    for record in found.batches:
        assert record.ended_at <= gone.get(record.server, math.inf)
    assert all(fate.on_time(SLO_S) for fate in found.fates if fate.due_s > 60)


def test_a_replica_that_is_not_wanted_any_more_never_serves() -> None:
    """The load was gone before it had started."""
    times, seconds = load((0.3, 30), (2.4, 20), (0.3, 150))
    _, use = run(times, seconds, plan("cpu", startup_s=140.0, down_window_s=30.0))
    added = use.lifetimes[1:]
    assert added
    assert all(life.ready_at == math.inf and life.gone_at == life.leaving_at for life in added)
    assert (use.grown >= 1, use.shrunk >= 1) == (True, True)


def test_capacity_demand_asks_once_where_cpu_asks_again_and_again() -> None:
    """Five times the load: use stops at 100 %, so each step waits for the one before to start."""
    times, seconds = load((0.5, 60), (3.8, 240))
    of: dict[Signal, FleetUse] = {}
    signals: tuple[Signal, ...] = ("capacity-demand", "cpu")
    for signal in signals:
        _, of[signal] = run(times, seconds, plan(signal, startup_s=60.0))
    asked = {
        signal: sorted({life.asked_at for life in use.lifetimes[1:]}) for signal, use in of.items()
    }
    assert [use.most for use in of.values()] == [5, 5]
    assert asked["capacity-demand"][-1] <= 90.0
    steps = asked["cpu"]
    assert len(steps) >= 3
    assert all(later - sooner >= 60.0 for sooner, later in itertools.pairwise(steps))


def test_cpu_is_the_share_of_time_with_a_batch() -> None:
    """Below the target nothing happens, above it something does."""
    for multiple, most in ((0.6, 1), (0.95, 2)):
        times, seconds = load((multiple, 90))
        _, use = run(times, seconds, plan("cpu", startup_s=10.0))
        assert use.most == most


def test_compression_carries_the_time_until_replicas_are_ready() -> None:
    """The point of it: the same signal and replicas, but nobody is turned away meanwhile."""
    times, seconds = load((0.5, 60), (1.5, 240))
    how = plan(startup_s=120.0)
    still, _ = run(times, seconds, how, STATIC)
    compressed, use = run(times, seconds, how, DEMAND)
    ready_at = max(life.ready_at for life in use.lifetimes)
    assert attainment(still, 65, ready_at) < 0.75
    assert attainment(compressed, 65, ready_at) > 0.97
    degrees = [fate.r for fate in compressed.fates if 80 < fate.due_s < ready_at - 20]
    after = [fate.r for fate in compressed.fates if fate.due_s > ready_at + 5]
    assert sum(map(bool, degrees)) > 0.5 * len(degrees)
    assert sum(map(bool, after)) < 0.05 * len(after)


def test_steady_degree_asks_for_fewer_replicas() -> None:
    """Who is willing to run at r=8 day in, day out needs less."""
    times, seconds = load((2.8, 90))
    _, lowest = run(times, seconds, plan(startup_s=15.0), DEMAND)
    how = plan(startup_s=15.0)
    fewer = FleetPlan(1, how.signal, how.rules, how.startup_s, steady_r=8)
    _, willing = run(times, seconds, fewer, DEMAND)
    assert willing.most < lowest.most
