"""How much comes in and how long it takes: what the batcher measures of the load."""

import math
from collections import deque

RATE_MEMORY_S = 2.0
LATENCY_WINDOW_S = 2.0
LATENCY_SAMPLES = 512


class ArrivalRate:
    """Images per second, exponentially weighted over about `memory_s`."""

    def __init__(self, memory_s: float = RATE_MEMORY_S) -> None:
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
        self._samples: deque[tuple[float, float]] = deque(maxlen=LATENCY_SAMPLES)

    def add(self, latency_s: float, now: float) -> None:
        """Note one answer."""
        self._samples.append((now, latency_s))

    def quantile(self, share: float, now: float) -> float | None:
        """Return the latency that `share` of the answers kept to; None without answers."""
        while self._samples and self._samples[0][0] < now - self._window_s:
            self._samples.popleft()
        if not self._samples:
            return None
        latencies = sorted(latency for _, latency in self._samples)
        return latencies[math.ceil(share * len(latencies)) - 1]
