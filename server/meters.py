"""How much comes in and how long it takes: what the scheduler measures of the load."""

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from server.stats import Backlog, BatchStats, LoadSnapshot

FAST_MEMORY_S = 0.5
STEADY_MEMORY_S = 3.0
SWITCH_WEIGHT = 0.2
LATENCY_WINDOW_S = 2.0
LATENCY_SAMPLES = 128


class ArrivalRate:
    """Images per second, exponentially weighted over about `memory_s`."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._weight = 0.0
        self._updated_at = 0.0

    def add(self, count: int, now: float) -> None:
        """Note that `count` images arrived."""
        self._weight = self._decayed(now) + count
        self._updated_at = now

    def per_second(self, now: float) -> float:
        """Return the rate; without arrivals it decays towards zero."""
        return self._decayed(now) / self._memory_s

    def _decayed(self, now: float) -> float:
        return self._weight * math.exp(-max(0.0, now - self._updated_at) / self._memory_s)


class RecentLatency:
    """Quantile of the latencies of the last `window_s`, from at most `LATENCY_SAMPLES`."""

    def __init__(self, window_s: float = LATENCY_WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def add(self, latency_s: float, now: float) -> None:
        """Note one answer."""
        self._forget_before(now - self._window_s)
        if len(self._samples) == LATENCY_SAMPLES:
            self._forget_oldest()
        self._samples.append((now, latency_s))
        insort(self._sorted, latency_s)

    def quantile(self, share: float, now: float) -> float | None:
        """Return the latency that `share` of the answers kept to; None without answers."""
        self._forget_before(now - self._window_s)
        if not self._sorted:
            return None
        return self._sorted[math.ceil(share * len(self._sorted)) - 1]

    def _forget_before(self, time: float) -> None:
        while self._samples and self._samples[0][0] < time:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, latency_s = self._samples.popleft()
        del self._sorted[bisect_left(self._sorted, latency_s)]


@dataclass(slots=True, eq=False)
class Running:
    """A batch that is being computed.

    Attributes:
        images: how many.
        device: the number of the device that is believed to compute it: the one that is free first.
        takes_s: how long it should take, once its device has no other work.
        done_at: when it should be over.
    """

    images: int
    device: int
    takes_s: float
    done_at: float


class LoadMeter:
    """What has come, what is being computed, and how answers fared: the state behind snapshots.

    Args:
        devices: how many compute batches of their own.
    """

    def __init__(self, devices: int = 1) -> None:
        self._fast_rate = ArrivalRate(FAST_MEMORY_S)
        self._steady_rate = ArrivalRate(STEADY_MEMORY_S)
        self._latency = RecentLatency()
        self._answered = 0
        self._late = 0
        self._running: deque[Running] = deque()
        self._last_batch_at = 0.0
        self._switch_s = 0.0
        self._last_r: list[int | None] = [None] * devices

    def take_over(self, before: "LoadMeter") -> None:
        """Go on with the arrivals that another one has seen; batches were another model's."""
        self._fast_rate = before._fast_rate
        self._steady_rate = before._steady_rate

    def arrived(self, now: float, images: int) -> None:
        """Note offered images, admitted or not."""
        self._fast_rate.add(images, now)
        self._steady_rate.add(images, now)

    def lost(self, images: int) -> None:
        """Note images that will not be answered with a result in time."""
        self._late += images

    def started(self, now: float, images: int, r: int, batch_s: float) -> Running:
        """Note a batch and how long it should take, without a switch of the degree."""
        left_s = self._left_s(now)
        device = left_s.index(min(left_s))
        switch_s = self._switch_s if r != self._last_r[device] else 0.0
        takes_s = switch_s + batch_s
        self._running.append(Running(images, device, takes_s, now + left_s[device] + takes_s))
        return self._running[-1]

    def ended(self, stats: BatchStats | None, running: Running | None = None) -> None:
        """Note that a batch is over, by default the oldest one; without figures if it failed.

        What had to wait for it has its device for itself from now on. So it is known anew when that
        should be over: a guess upon the guess of the batch before, and so on, would go astray.
        """
        if running is None:
            running = self._running[0] if self._running else None
        if running is not None:
            self._running.remove(running)
        if stats is None:
            return
        self._last_batch_at = done_at = stats.ended_at
        for other in self._running:
            if running is not None and other.device == running.device:
                other.done_at = done_at = done_at + other.takes_s
        before = self._last_r[stats.device]
        if before is not None and stats.r != before:
            weight = SWITCH_WEIGHT if self._switch_s else 1.0
            self._switch_s += weight * (stats.merge_s - self._switch_s)
        self._last_r[stats.device] = stats.r

    def answered(self, now: float, latency_s: float, *, late: bool) -> None:
        """Note one result and how long its request took, from its first byte."""
        self._answered += 1
        self._late += late
        self._latency.add(latency_s, now)

    @property
    def busy(self) -> bool:
        """Whether a batch is running."""
        return bool(self._running)

    def idle_s(self, now: float) -> float:
        """Return how long ago the last batch ended: so long the beliefs have not been tested."""
        return now - self._last_batch_at

    def residual_s(self, now: float) -> float:
        """Return when a device should be free for another batch; 0 if one is."""
        return min(self._left_s(now))

    def share_s(self, now: float) -> float:
        """Return how much longer what is running should take, as a share of all devices."""
        return sum(self._left_s(now)) / len(self._last_r)

    def begin_s(self, now: float) -> tuple[float, ...]:
        """Return when each device should be free, counted from when the first one is."""
        if len(self._last_r) == 1:
            return (0.0,)
        first_s, *others = sorted(self._left_s(now))
        return (0.0, *(left_s - first_s for left_s in others))

    def _left_s(self, now: float) -> list[float]:
        """Return how much longer each device should have work."""
        left_s = [0.0] * len(self._last_r)
        for batch in self._running:
            left_s[batch.device] = max(0.0, batch.done_at - now)
        return left_s

    def snapshot(
        self,
        now: float,
        backlog: Backlog,
        *,
        decoding: int,
        oldest_wait_s: float,
        queue_size: int,
        spread: float,
    ) -> LoadSnapshot:
        """Put together what is known at this moment."""
        return LoadSnapshot(
            now=now,
            backlog=backlog,
            decoding=decoding,
            oldest_wait_s=oldest_wait_s,
            in_flight=sum(batch.images for batch in self._running),
            arrival_rate=self._fast_rate.per_second(now),
            steady_rate=self._steady_rate.per_second(now),
            recent_latency_s=self._latency.quantile(0.95, now),
            answered=self._answered,
            late=self._late,
            queue_size=queue_size,
            spread=spread,
            switch_s=self._switch_s,
        )
