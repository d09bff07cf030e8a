"""What a scheduling decision costs: choosing degree and batch from a queue of 1 to 1,000 images.

    python benchmarks/decision.py
    python benchmarks/decision.py --lengths 1000 5000 --runs 1000

A decision is `Scheduler.next_batch`: finding who is too late, asking the policy, filling the batch.
It happens once per batch, on the event loop, so its cost is latency for everybody. Three queues:
plain ones that can all be served in time; the same with priorities, deadlines and limits on `r`
mixed; and in overload, where most of the queue has to be given up at once. Beside it the cost of a
request's arrival (door and queue). Needs no model: degrees and latencies are those of ViT-Tiny on
two cores. Prints a table and one final JSON line.
"""

import argparse
import gc
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from server.controller import Controller
from server.fates import percentile
from server.operating_table import OperatingTable
from server.policies import BUILDERS, build_policy
from server.scheduler import PendingRequest, Scheduler, Selection
from server.stats import BatchStats
from tocom_core.latency_profile import LatencyProfile, Measurement

SINGLE_S = 0.028
"""One image at r=0."""
FASTEST_WORK = 0.52
"""Work at the highest degree, relative to r=0."""
HIGHEST = 16
SLO_S = 10 * SINGLE_S
MAX_BATCH = 32
LIMIT_US = 100.0
"""Asked for at a queue of 1,000."""


@dataclass(frozen=True, slots=True)
class Row:
    """Microseconds at one length of one queue."""

    queue: str
    length: int
    decision_p50_us: float
    decision_p99_us: float
    arrival_p50_us: float
    arrival_p99_us: float


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--policy", choices=BUILDERS, default="demand")
    options = parser.parse_args()
    rows = []
    print("| queue | images | decision p50 µs | p99 µs | arrival p50 µs | p99 µs |")
    print("|---" * 6 + "|")
    for queue in ("plain", "mixed", "overload"):
        for length in options.lengths:
            row = measure(queue, length, options.runs, options.policy)
            rows.append(row)
            print(
                f"| {queue} | {length} | {row.decision_p50_us:.1f} | {row.decision_p99_us:.1f} "
                f"| {row.arrival_p50_us:.1f} | {row.arrival_p99_us:.1f} |",
                flush=True,
            )
    result = {"benchmark": "decision", "policy": options.policy, "limit_us": LIMIT_US}
    print("\n" + json.dumps(result | {"rows": [asdict(row) for row in rows]}))


class Server:
    """Scheduler, policy and table as a server has them, without the server.

    Args:
        policy: which one.
        slo_s: the latency to keep.
        queue_size: most requests that wait.
    """

    def __init__(self, policy: str, slo_s: float, queue_size: int) -> None:
        self.now = 100.0
        table = OperatingTable(vit_tiny_profile(), max_batch_s=slo_s / 4)
        chooser = build_policy(policy, static_r=0, dwell_s=1.0, slo_s=slo_s)
        self._controller = Controller(chooser, table, 0, lambda: self.now, slo_s=slo_s)
        self.scheduler: Scheduler[PendingRequest] = Scheduler(
            self._controller,
            max_batch_size=MAX_BATCH,
            queue_size=queue_size,
            slo_s=slo_s,
        )
        self._drawn = random.Random(0)
        self._count = 0

    def arrive(self, *, mixed: bool) -> None:
        """Bring a request to the door, and into the queue whatever the door says."""
        self._count += 1
        request = PendingRequest(self._count, self.now, self.now - 0.05)
        if mixed:
            request.priority = self._drawn.randrange(3)
            request.max_r = self._drawn.choice((None, None, 0, 4, 8, 12))
            request.deadline = self._drawn.choice((None, self.now + 1000))
        scheduler = self.scheduler
        scheduler.note_arrival(self.now, 1)
        scheduler.refusal(
            self.now,
            1,
            priority=request.priority,
            deadline=request.deadline,
            max_r=request.max_r,
            received_at=request.received_at,
        )
        scheduler.admit(request)

    def compute(self, selection: Selection[PendingRequest]) -> None:
        """Let the batch take its time, more or less, and everybody learn from it."""
        if not selection.batch:
            return
        size, r = len(selection.batch), selection.r
        took_s = self._controller.table.batch_s(r, size) * self._drawn.lognormvariate(0, 0.05)
        self.scheduler.batch_started(self.now, size, r)
        stats = BatchStats(r=r, size=size, merge_s=0.0, compute_s=took_s, started_at=self.now)
        self.now += took_s
        self._controller.observe_batch(stats)
        self.scheduler.batch_ended(stats)
        for request in selection.batch:
            self.scheduler.answered(self.now, request)


def measure(queue: str, length: int, runs: int, policy: str) -> Row:
    """Decide so often, each time with the queue filled up to this length."""
    # A queue that can be served in time needs time; overload is a queue far beyond the SLO.
    slo_s = SLO_S if queue == "overload" else SLO_S + 2 * length * SINGLE_S
    server = Server(policy, slo_s, 2 * length + MAX_BATCH)
    decisions: list[float] = []
    arrivals: list[float] = []
    with no_collection():
        for _ in range(runs):
            while len(server.scheduler) < length:
                with timed(arrivals):
                    server.arrive(mixed=queue == "mixed")
            with timed(decisions):
                selection = server.scheduler.next_batch(server.now)
            server.compute(selection)
            del selection  # before the next is timed: letting go of a thousand takes its time
    micros = [percentile(times, p) or 0.0 for times in (decisions, arrivals) for p in (50, 99)]
    return Row(queue, length, *(1e6 * seconds for seconds in micros))


def vit_tiny_profile() -> LatencyProfile:
    """Latencies of about ViT-Tiny on two cores: a batch costs little beside its images."""
    share = {r: 1 - (1 - FASTEST_WORK) * r / HIGHEST for r in range(HIGHEST + 1)}
    return LatencyProfile(
        device={},
        model={},
        work=share,
        measurements=tuple(
            Measurement(r, batch, SINGLE_S * (0.1 + 0.9 * batch * share[r]))
            for r in (0, HIGHEST // 2, HIGHEST)
            for batch in (1, 4, MAX_BATCH)
        ),
        max_batch_size=MAX_BATCH,
    )


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append how long the block took."""
    started = time.perf_counter()
    yield
    into.append(time.perf_counter() - started)


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the block, as `timeit` does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
