"""Small made-up profiles for tests of the simulation."""

from collections.abc import Mapping, Sequence

from server.farm import PolicyChoice, ServerSettings, build_farm
from server.simulated_machine import Machine
from server.simulated_requests import Arrival
from server.simulation import SimulatedRun, simulate
from tocom_core.latency_profile import (
    Accuracy,
    LatencyProfile,
    Measurement,
    ServingOverhead,
)

WORK = {0: 1.0, 4: 0.8, 8: 0.6}
ACCURACY = {0: 0.9, 4: 0.88, 8: 0.8}
SLO_S = 0.3
LARGEST = 8


def batch_s(r: int, size: int) -> float:
    """Return what a batch takes: 2 ms, and 20 ms an image at r=0."""
    return 0.002 + 0.02 * WORK[r] * size


def profile(
    accuracy: Mapping[int, float] = ACCURACY, serving: ServingOverhead | None = None
) -> LatencyProfile:
    """Return a profile of three degrees and batches of up to eight."""
    return LatencyProfile(
        device={"name": "test bench"},
        model={"r_source": 0},
        work=WORK,
        measurements=[
            Measurement(r, size, batch_s(r, size), 0.01, 20)
            for r in WORK
            for size in (1, 2, 4, LARGEST)
        ],
        accuracies=[Accuracy(r, value, "evaluation", 1000) for r, value in accuracy.items()],
        serving=serving,
        max_batch_size=LARGEST,
    )


def machine(
    overhead: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    switch_s: float = 0.0,
    noise: float = 0.0,
    lanes: int = 1,
) -> Machine:
    """Return the machine of that profile, exactly."""
    seconds = {r: [batch_s(r, size) for size in range(1, LARGEST + 1)] for r in WORK}
    return Machine(seconds, ACCURACY, ServingOverhead(*overhead), switch_s, noise, lanes=lanes)


def run(
    arrivals: Sequence[float | Arrival],
    truth: Machine,
    policy: str = "demand",
    *,
    static_r: int = 0,
    slo_s: float = SLO_S,
    queue_delay_s: float = 0.0,
    shed_late: bool = True,
    seed: int = 0,
) -> SimulatedRun:
    """Simulate one server with that profile."""
    requests = [a if isinstance(a, Arrival) else Arrival(a) for a in arrivals]
    settings = ServerSettings(slo_s, LARGEST, max_queue_delay_s=queue_delay_s, shed_late=shed_late)
    choice = PolicyChoice(policy, static_r)
    return simulate(requests, build_farm(profile(), truth, choice, settings, seed=seed))
