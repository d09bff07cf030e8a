"""The promise that every admitted image is answered exactly once, under random histories."""

import asyncio
import itertools
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from server.batcher import ItemResult, Submission, Terms
from server.errors import DeadlineExpired, Draining, QueueFull
from tests.server.fakes import Bench, FakeModel, loop_time, run_virtual


@dataclass(frozen=True)
class Arrival:
    """One request of a random history."""

    pause_s: float
    images: int
    bad: int
    deadline_s: float | None
    leaves_after_s: float | None
    max_r: int | None
    priority: int


ARRIVALS = st.builds(
    Arrival,
    pause_s=st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.7]),
    images=st.integers(1, 6),
    bad=st.integers(0, 1),
    deadline_s=st.none() | st.sampled_from([0.0, 0.01, 0.2, 3.0]),
    leaves_after_s=st.none() | st.sampled_from([0.0, 0.003, 0.1, 1.0]),
    max_r=st.none() | st.integers(0, 16),
    priority=st.integers(0, 2),
)


class History:
    """A bench, its clients, and the books that the test keeps beside the batcher's own."""

    def __init__(
        self, degrees: list[int], faulty: set[int], limit: int, slo_s: float, shed_late: bool
    ) -> None:
        turns = itertools.count()
        self.model = FakeModel(
            lambda r: 40.0 + r,
            fault=lambda payloads, r: ValueError() if len(self.model.batches) in faulty else None,
        )
        self.bench = Bench(
            self.model,
            choose_r=lambda load: degrees[next(turns) % len(degrees)],
            max_batch_size=limit,
            queue_size=20,
            slo_s=slo_s,
            shed_late=shed_late,
        )
        self.limit = limit
        self.refused = 0
        self.wishes: list[Submission] = []
        self.futures: list[asyncio.Future[ItemResult]] = []
        self.gone_at: dict[int, float] = {}

    async def client(self, arrival: Arrival) -> None:
        """One request: reserve, decode, submit, and perhaps leave early."""
        deadline = None if arrival.deadline_s is None else loop_time() + arrival.deadline_s
        try:
            terms = Terms(deadline, arrival.max_r, arrival.priority)
            reservation = self.bench.batcher.reserve(arrival.images, terms)
        except (QueueFull, Draining, DeadlineExpired):
            self.refused += arrival.images
            return
        with reservation:
            await asyncio.sleep(0.004 * arrival.images)  # decoding
            first = len(self.wishes)
            for key in range(first, first + arrival.images - arrival.bad):
                self.wishes.append(
                    Submission(
                        key,
                        deadline=deadline,
                        max_r=arrival.max_r,
                        priority=arrival.priority,
                    )
                )
                self.futures.append(reservation.submit(self.wishes[key]))
            mine = range(first, len(self.wishes))
        if arrival.leaves_after_s is not None:
            await asyncio.sleep(arrival.leaves_after_s)
            for key in mine:
                if self.futures[key].cancel():
                    self.gone_at[key] = loop_time()

    def check_answers(self) -> None:
        """One answer and one record each, the right one; and all places are back."""
        outcomes = self.bench.outcomes
        assert all(future.done() for future in self.futures)
        assert sum(outcomes.values()) == len(self.futures) + self.refused
        assert outcomes["abandoned"] == len(self.gone_at)
        good = {
            key: future.result().output
            for key, future in enumerate(self.futures)
            if not future.cancelled() and future.exception() is None
        }
        assert outcomes["ok"] == len(good)
        assert all(key == output for key, output in good.items())
        assert len(self.bench.scheduler) == self.bench.scheduler.held == 0

    def check_batches(self) -> None:
        """Limits and wishes are kept; nothing ended or served before reaches the model."""
        assert len(self.model.served) == len(set(self.model.served))
        for at, r, keys in self.model.batches:
            assert len(keys) <= self.limit
            for key in keys:
                max_r, deadline = self.wishes[key].max_r, self.wishes[key].deadline
                assert max_r is None or r <= max_r
                assert deadline is None or deadline > at
                assert self.gone_at.get(key, at) >= at


@settings(max_examples=80, deadline=None)
@given(
    arrivals=st.lists(ARRIVALS, max_size=25),
    degrees=st.lists(st.integers(0, 16), min_size=1, max_size=5),
    faulty=st.sets(st.integers(0, 30), max_size=5),
    limit=st.integers(1, 8),
    drain_s=st.sampled_from([0.0, 0.3, 1000.0]),
    slo_s=st.sampled_from([0.02, 0.1, 1.0]),
    shed_late=st.booleans(),
)
def test_every_admitted_image_is_answered_exactly_once(
    arrivals: list[Arrival],
    degrees: list[int],
    faulty: set[int],
    limit: int,
    drain_s: float,
    slo_s: float,
    shed_late: bool,
) -> None:
    """Under any mix of deadlines, departures, faults, refusals and an early end, all rules hold."""

    async def main() -> None:
        history = History(degrees, faulty, limit, slo_s, shed_late)
        clients = []
        for arrival in arrivals:
            await asyncio.sleep(arrival.pause_s)
            clients.append(asyncio.create_task(history.client(arrival)))
        drained = await history.bench.batcher.drain(drain_s)
        await asyncio.gather(*clients)
        await asyncio.sleep(0)
        assert drained or drain_s < 1000
        history.check_answers()
        history.check_batches()

    run_virtual(main())
