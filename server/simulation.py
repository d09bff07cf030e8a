"""A discrete-event simulation: the real scheduler and policy in simulated time.

Nothing here decides anything. Requests arrive, join the queue when they are decoded, and go in the
batches that the `Scheduler` chooses at the degree that the `Controller` chooses, as the batcher
does it on the event loop. Only time is made up: a heap of events instead of a clock, a table of
durations instead of a forward pass. That is why a simulation can be compared with a real replay,
request by request, and why a policy that is good here needs no second implementation there.

What the scheduler *believes* of the machine (the controller's table) and what is *true* of it
(`Machine`) are two things; the table learns from batches as it does on a real server.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.fates import Fate
from server.simulated_requests import Arrival, BatchRecord, Ledger
from server.simulated_server import SimulatedServer
from server.simulated_time import Timetable


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What a simulation found.

    Attributes:
        fates: one per arrival, in their order.
        batches: in the order in which they ended.
        switches: how often the weights of `servers` went to another degree.
    """

    fates: list[Fate]
    batches: list[BatchRecord]
    switches: int


class Router(Protocol):
    """Sends each request to one of several servers."""

    def choose(self, servers: Sequence[SimulatedServer]) -> SimulatedServer:
        """Return the server that gets the next request."""
        ...


class OnlyServer:
    """No choice: the first server gets everything."""

    def choose(self, servers: Sequence[SimulatedServer]) -> SimulatedServer:
        """Return the first."""
        return servers[0]


def simulate(
    arrivals: Sequence[Arrival],
    servers: Sequence[SimulatedServer],
    router: Router | None = None,
    *,
    begin: Callable[[Timetable, Ledger], None] = lambda timetable, ledger: None,
) -> SimulatedRun:
    """Run one simulation, until the last answer.

    Args:
        arrivals: by rising time, from 0 on.
        servers: fresh ones, all with the same clock, which stands at 0.
        router: which server gets a request; None sends everything to the first.
        begin: called before the first arrival by whoever has events of its own, such as servers
            that begin later.

    Raises:
        ValueError: arrivals that are out of order, or no server.
    """
    if not servers:
        raise ValueError("expected at least one server")
    times = [0.0, *(arrival.at_s for arrival in arrivals)]
    if any(later < sooner for sooner, later in itertools.pairwise(times)):
        raise ValueError("expected arrivals by rising time, from 0 on")
    router = OnlyServer() if router is None else router
    timetable, ledger = Timetable(servers[0].clock), Ledger(arrivals)
    for server in servers:
        server.open(timetable, ledger)
    begin(timetable, ledger)
    for index, arrival in enumerate(arrivals):
        timetable.run_until(arrival.at_s)
        router.choose(servers).arrive(index, arrival)
    timetable.run_until()
    return SimulatedRun(ledger.fates(), ledger.batches, sum(s.switches for s in servers))
