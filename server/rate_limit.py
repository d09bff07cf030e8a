"""How many requests one client may send: a token bucket each, in bounded memory.

A bucket is one number, the time at which it will be full again; taking a token moves that time on
(the generic cell rate algorithm). A bucket that is full need not be remembered at all, so that
those used longest ago are forgotten first, and almost always without anyone gaining by it.
"""

import math
from collections import OrderedDict

from server.clock import Clock

MAX_CLIENTS = 65_536
"""Clients that are remembered, some 10 MB."""


class RateLimiter:
    """Token buckets by client.

    Args:
        rate: tokens per second that flow into each bucket.
        burst: tokens that a bucket holds; None: two seconds' worth, at least one.
        clock: seconds.
        max_clients: how many buckets are remembered.
    """

    def __init__(
        self, rate: float, burst: int | None, clock: Clock, max_clients: int = MAX_CLIENTS
    ) -> None:
        self._interval_s = 1 / rate
        self._slack_s = ((burst or max(1, math.ceil(2 * rate))) - 1) * self._interval_s
        self._clock = clock
        self._max_clients = max_clients
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: str) -> float:
        """Take a token; returns 0, or how many seconds it takes until there is one."""
        now = self._clock()
        full_at = max(now, self._full_at.pop(client, now))
        wait_s = full_at - now - self._slack_s
        admitted = wait_s <= 1e-9  # what rounding leaves
        self._full_at[client] = full_at + self._interval_s if admitted else full_at
        if len(self._full_at) > self._max_clients:
            self._full_at.popitem(last=False)
        return 0.0 if admitted else wait_s
