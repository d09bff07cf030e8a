"""Farms: how requests are spread, and that servers are built as the real one is."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.errors import SettingsError
from server.farm import (
    LeastOutstanding,
    PolicyChoice,
    ServerSettings,
    build_farm,
    true_machine,
)
from server.simulated_requests import Arrival
from server.simulation import SimulatedRun, simulate
from tests.server.simulated_profiles import ACCURACY, LARGEST, SLO_S, batch_s, machine, profile
from tocom_core.latency_profile import ServingOverhead

SETTINGS = ServerSettings(SLO_S, LARGEST, max_queue_delay_s=0.0)
STATIC = PolicyChoice("static", 0)


def run_farm(
    times: Sequence[float], servers: int, policy: PolicyChoice = STATIC, noise: float = 0.0
) -> SimulatedRun:
    """Simulate so many servers behind least-outstanding routing."""
    farm = build_farm(profile(), machine(noise=noise), policy, SETTINGS, servers=servers)
    return simulate([Arrival(time) for time in times], farm, LeastOutstanding())


def test_idle_servers_take_turns() -> None:
    """With nothing outstanding anywhere, requests go round."""
    found = run_farm([1.0, 2.0, 3.0, 4.0], 3)
    assert [record.server for record in found.batches] == [0, 1, 2, 0]


def test_the_least_loaded_server_gets_the_request() -> None:
    """A server that is busy is passed over for one that is not, whosever turn it is."""
    farm = build_farm(profile(), machine(), STATIC, SETTINGS, servers=3)
    router = LeastOutstanding()
    for server, outstanding in zip(farm, (2, 1, 4), strict=True):
        server.outstanding = outstanding
    assert router.choose(farm) is farm[1]
    farm[1].outstanding = 2
    assert [farm.index(router.choose(farm)) for _ in range(3)] == [0, 1, 0]


def test_two_servers_carry_twice_the_load() -> None:
    """What overloads one server is no trouble for two."""
    times = [i / 80 for i in range(400)]
    one, two = run_farm(times, 1).fates, run_farm(times, 2).fates
    assert sum(fate.on_time(SLO_S) for fate in one) < 0.75 * len(times)
    assert all(fate.on_time(SLO_S) for fate in two)


def test_each_server_has_its_own_noise_and_degree() -> None:
    """Servers know nothing of each other: same arrivals, different durations."""
    found = run_farm([1.0, 1.0], 2, noise=0.3)
    durations = [record.ended_at - record.started_at for record in found.batches]
    assert durations[0] != durations[1]


def test_requests_are_outstanding_until_they_are_answered() -> None:
    """At the end nobody is, whatever became of them."""
    farm = build_farm(profile(), machine(), STATIC, SETTINGS, servers=2)
    arrivals = [Arrival(i / 300, deadline_s=0.1 if i % 3 else None) for i in range(200)]
    outcomes = {fate.outcome for fate in simulate(arrivals, farm, LeastOutstanding()).fates}
    assert outcomes == {"ok", "shed", "expired"}
    assert [server.outstanding for server in farm] == [0, 0]


def test_a_profile_is_the_truth_of_the_machine() -> None:
    """Durations are the fit's, overheads and accuracy the profile's own."""
    overhead = ServingOverhead(0.001, 0.002, 0.003)
    truth = true_machine(profile(serving=overhead), LARGEST, noise=0.1)
    for r in (0, 4, 8):
        assert truth.batch_seconds[r] == pytest.approx(
            [batch_s(r, size) for size in range(1, LARGEST + 1)], rel=0.03
        )
    assert (truth.overhead, truth.accuracy, truth.noise) == (overhead, ACCURACY, 0.1)


def test_policies_are_written_as_they_are_given() -> None:
    """Reports name them as the command line does."""
    assert [str(PolicyChoice("demand")), str(PolicyChoice("static", 8))] == ["demand", "static:8"]


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        (PolicyChoice("genius"), SETTINGS, "unknown policy 'genius'"),
        (PolicyChoice("static", 3), SETTINGS, "r=3 is no degree"),
        (PolicyChoice("demand"), replace(SETTINGS, min_accuracy=0.95), "accuracy floor"),
        (PolicyChoice("demand"), replace(SETTINGS, max_r=99), "must lie from 0 to 8"),
    ],
)
def test_refuses_what_no_server_would_start_with(
    policy: PolicyChoice, settings: ServerSettings, message: str
) -> None:
    """Errors of configuration are told before anything is simulated."""
    with pytest.raises(SettingsError, match=message):
        build_farm(profile(), machine(), policy, settings)
