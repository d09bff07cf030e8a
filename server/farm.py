"""A farm of servers from one profile, and how requests are spread over them.

Each server has its own scheduler, controller and table, as N processes behind a load balancer
have; they know nothing of each other. This is where a simulated server is put together, with the
parts and defaults of the real one (`server.core`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.controller import Controller
from server.errors import BadParameter, SettingsError
from server.operating_table import OperatingTable
from server.policies import build_policy
from server.scheduler import PendingRequest, Scheduler
from server.simulated_machine import NO_OVERHEAD, Machine, SlowDown
from server.simulated_server import SimulatedServer
from server.simulated_time import SimulatedClock
from tocom_core.latency_fit import fit_latency
from tocom_core.latency_profile import LatencyProfile


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy by name, and the degree that `static` holds."""

    name: str
    static_r: int = 0

    def __str__(self) -> str:
        """Return it as the command line takes it."""
        return f"static:{self.static_r}" if self.name == "static" else self.name


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the servers of a simulation are told; the meaning is that of `server.settings`."""

    slo_s: float
    max_batch_size: int = 32
    max_queue_delay_s: float = 0.002
    queue_size: int = 256
    shed_late: bool = True
    dwell_s: float | None = None
    max_r: int | None = None
    min_accuracy: float | None = None

    @property
    def max_batch_s(self) -> float:
        """Longest time one batch should take, as on a real server."""
        return self.slo_s / 2


class LeastOutstanding:
    """Each request goes to the server with the fewest unanswered ones; of equals, in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, servers: Sequence[SimulatedServer]) -> SimulatedServer:
        """Return the server that gets the next request."""
        count, first = len(servers), self._next
        turn = min(range(count), key=lambda k: servers[(first + k) % count].outstanding)
        chosen = (first + turn) % count
        self._next = (chosen + 1) % count
        return servers[chosen]


def true_machine(
    profile: LatencyProfile,
    max_batch_size: int,
    *,
    switch_s: float = 0.0,
    noise: float = 0.0,
    slow_downs: Sequence[SlowDown] = (),
) -> Machine:
    """Return the machine that a profile describes, its fit taken for the truth."""
    fit = fit_latency(profile.measurements, profile.work, max_batch_size, profile.lanes)
    sizes = range(1, max_batch_size + 1)
    seconds = {r: tuple(fit.batch_s(r, size) for size in sizes) for r in profile.degrees}
    overhead = profile.serving or NO_OVERHEAD
    accuracy = profile.expected_accuracy()
    return Machine(seconds, accuracy, overhead, switch_s, noise, tuple(slow_downs), profile.lanes)


def build_farm(
    profile: LatencyProfile,
    machine: Machine,
    policy: PolicyChoice,
    settings: ServerSettings,
    *,
    servers: int = 1,
    seed: int = 0,
) -> list[SimulatedServer]:
    """Return fresh servers that share a clock.

    `static` holds its degree as a pin does, so that work that this degree cannot do in time is
    given up, not what the fastest one could not.

    Args:
        profile: what the servers believe at first.
        machine: what is true.
        policy: which one they all have.
        settings: what they are told.
        servers: how many.
        seed: of the noise of batches.

    Raises:
        SettingsError: no such policy or degree, or no degree is left to serve.
    """
    clock = SimulatedClock()
    return [
        build_server(profile, machine, policy, settings, clock, seed, number)
        for number in range(servers)
    ]


def build_server(
    profile: LatencyProfile,
    machine: Machine,
    policy: PolicyChoice,
    settings: ServerSettings,
    clock: SimulatedClock,
    seed: int,
    number: int,
) -> SimulatedServer:
    """Return a fresh server, the `number`-th on a clock that it may share; see `build_farm`.

    Raises:
        SettingsError: no such policy or degree, or no degree is left to serve.
    """
    r_source = profile.r_source
    table = OperatingTable(
        profile, max_batch_size=settings.max_batch_size, max_batch_s=settings.max_batch_s
    )
    try:
        controller = Controller(
            build_policy(
                policy.name,
                static_r=policy.static_r,
                dwell_s=settings.dwell_s,
                slo_s=settings.slo_s,
            ),
            table,
            r_source,
            clock,
            slo_s=settings.slo_s,
            max_r=settings.max_r,
            min_accuracy=settings.min_accuracy,
        )
        if policy.name == "static":
            controller.pin(policy.static_r)
    except BadParameter as error:
        raise SettingsError(f"policy {policy}: {error.detail}") from error
    except ValueError as error:
        raise SettingsError(str(error)) from error
    scheduler: Scheduler[PendingRequest] = Scheduler(
        controller,
        max_batch_size=settings.max_batch_size,
        queue_size=settings.queue_size,
        slo_s=settings.slo_s,
        shed_late=settings.shed_late,
    )
    return SimulatedServer(
        scheduler,
        controller,
        machine,
        clock,
        r_source=r_source,
        max_batch_size=settings.max_batch_size,
        max_queue_delay_s=settings.max_queue_delay_s,
        seed=seed,
        number=number,
    )
