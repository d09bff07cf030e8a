"""What the last minutes looked like: one snapshot a second, for whoever begins to watch.

Images are noted as they end, which is an append to a list; once a second a clock's owner asks for a
snapshot, and the newest are kept. Nothing here knows who watches.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random

from server.agreement import AgreementEstimate
from server.clock import Clock
from server.control_status import ControllerStatus
from server.stats import BatchStats, LoadSnapshot, RequestStats

SAMPLE_EVERY_S = 1.0
KEPT_SNAPSHOTS = 180
LATENCY_WINDOW = 5
"""Intervals that percentiles are taken over."""
LATENCIES_PER_INTERVAL = 1000
"""Beyond it a random sample of them is kept."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the time from a request's first byte to its answer, in milliseconds."""

    p50: float
    p95: float
    p99: float
    samples: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One second of the server's life.

    Attributes:
        at: seconds since 1970.
        ready: warmed up, healthy and not draining.
        draining: shutting down.
        offered_per_s: images that came in, admitted or not.
        answered_per_s: images that were classified.
        refused_per_s: images that were shed or expired.
        queue_length: images that wait for a batch.
        decoding: images that were admitted and are being decoded.
        in_flight: images in running batches.
        batch_size: mean of the batches of this second; None without one.
        latency_ms: of the images classified in the last seconds; None without one.
        r: degree of the next batch.
        mode: who decides.
        reason: of the last change of degree.
        pinned_ttl_s: seconds until a pin ends by itself.
        expected_accuracy: of the present degree, where known.
        agreement: live, of the present degree, where known.
        outcomes: images since the start, by how they ended.
    """

    at: float
    ready: bool
    draining: bool
    offered_per_s: float
    answered_per_s: float
    refused_per_s: float
    queue_length: int
    decoding: int
    in_flight: int
    batch_size: float | None
    latency_ms: Latency | None
    r: int
    mode: str
    reason: str
    pinned_ttl_s: float | None
    expected_accuracy: float | None
    agreement: AgreementEstimate | None
    outcomes: dict[str, int]


@dataclass
class _Interval:
    """What happened since the last snapshot."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    batches: int = 0
    inferred: int = 0


class History:
    """Counts what ends, and keeps a snapshot of each second.

    Args:
        clock: monotonic seconds.
        wall_clock: seconds since 1970.
        random: chooses which latencies are kept when there are too many.
    """

    def __init__(self, clock: Clock, wall_clock: Clock, random: Random) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._random = random
        self._now = _Interval()
        self._began_at = clock()
        self._outcomes: Counter[str] = Counter()
        self._latencies_s: deque[list[float]] = deque(maxlen=LATENCY_WINDOW)
        self._snapshots: deque[Snapshot] = deque(maxlen=KEPT_SNAPSHOTS)

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The newest ones, oldest first."""
        return tuple(self._snapshots)

    def observe_image(self, stats: RequestStats) -> None:
        """Note how one image ended."""
        interval = self._now
        interval.outcomes[stats.outcome] += 1
        if stats.outcome != "ok":
            return
        kept, seen = interval.latencies_s, interval.outcomes["ok"]
        if len(kept) < LATENCIES_PER_INTERVAL:
            kept.append(stats.total_s)
        elif (place := int(self._random.random() * seen)) < LATENCIES_PER_INTERVAL:
            kept[place] = stats.total_s

    def observe_batch(self, stats: BatchStats) -> None:
        """Note one forward pass."""
        self._now.batches += 1
        self._now.inferred += stats.size

    def sample(
        self,
        load: LoadSnapshot,
        status: ControllerStatus | None,
        *,
        r_source: int,
        ready: bool,
        draining: bool,
    ) -> Snapshot:
        """End the present interval, and keep and return its snapshot.

        Args:
            load: as the scheduler sees it.
            status: the controller's; None during the warm-up.
            r_source: the degree meanwhile.
            ready: whether requests are taken.
            draining: whether the server is shutting down.
        """
        now, done = self._clock(), self._now
        seconds = max(now - self._began_at, 1e-3)
        self._now, self._began_at = _Interval(), now
        self._outcomes.update(done.outcomes)
        self._latencies_s.append(done.latencies_s)
        r = r_source if status is None else status.r
        change = None if status is None else status.last_change
        snapshot = Snapshot(
            at=self._wall_clock(),
            ready=ready,
            draining=draining,
            offered_per_s=round(load.steady_rate, 2),
            answered_per_s=round(done.outcomes["ok"] / seconds, 2),
            refused_per_s=round((done.outcomes["shed"] + done.outcomes["expired"]) / seconds, 2),
            queue_length=load.queue_length,
            decoding=load.decoding,
            in_flight=load.in_flight,
            batch_size=round(done.inferred / done.batches, 2) if done.batches else None,
            latency_ms=percentiles([s for part in self._latencies_s for s in part]),
            r=r,
            mode="auto" if status is None else status.mode,
            reason="start" if change is None else change.reason,
            pinned_ttl_s=None if status is None else status.pinned_ttl_s,
            expected_accuracy=None if status is None else status.expected_accuracy,
            agreement=None if status is None else status.agreement.get(r),
            outcomes=dict(self._outcomes),
        )
        self._snapshots.append(snapshot)
        return snapshot


def percentiles(seconds: list[float]) -> Latency | None:
    """The latency that 50, 95 and 99 % of the answers kept to; None without any."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    p50, p95, p99 = (
        round(ordered[math.ceil(share * len(ordered)) - 1] * 1000, 3) for share in (0.5, 0.95, 0.99)
    )
    return Latency(p50, p95, p99, len(ordered))
