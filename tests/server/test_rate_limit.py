"""Token buckets: burst, refill, fairness, and a bound on their memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rate_limit import RateLimiter


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_a_burst_then_the_rate() -> None:
    """Five at once, then one each tenth of a second; the wait that is told is the right one."""
    clock = Clock()
    limiter = RateLimiter(10, 5, clock)
    assert [limiter.take("a") for _ in range(5)] == [0.0] * 5
    wait_s = limiter.take("a")
    assert wait_s == pytest.approx(0.1)
    clock.now += wait_s / 2
    assert limiter.take("a") == pytest.approx(0.05)
    clock.now += 0.051
    assert limiter.take("a") == 0.0
    assert limiter.take("a") > 0
    clock.now += 1000
    assert [limiter.take("a") > 0 for _ in range(6)] == [False] * 5 + [True]


def test_clients_do_not_share() -> None:
    """One that is refused costs another nothing."""
    limiter = RateLimiter(1, 1, Clock())
    assert limiter.take("a") == 0 and limiter.take("a") > 0
    assert limiter.take("b") == 0


@pytest.mark.parametrize(("rate", "burst"), [(10, 20), (0.1, 1), (0.75, 2)])
def test_the_burst_is_two_seconds_worth_unless_set(rate: float, burst: int) -> None:
    """And at least one request."""
    limiter = RateLimiter(rate, None, Clock())
    assert [limiter.take("a") == 0 for _ in range(burst + 1)] == [True] * burst + [False]


@given(
    steps=st.lists(st.floats(0, 3), max_size=60),
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
)
def test_no_pattern_gets_more_than_burst_plus_rate(
    steps: list[float], rate: float, burst: int
) -> None:
    """Over any span, however a client spaces its requests, and refusals cost nothing."""
    clock = Clock()
    limiter = RateLimiter(rate, burst, clock)
    start, admitted = clock.now, 0
    for step in steps:
        clock.now += step
        admitted += limiter.take("a") == 0
        assert admitted <= burst + rate * (clock.now - start) + 1e-6


def test_memory_is_bounded() -> None:
    """A million names leave no more buckets than allowed; who was seen last is remembered."""
    limiter = RateLimiter(1, 1, Clock(), max_clients=100)
    assert limiter.take("regular") == 0
    for number in range(10_000):
        limiter.take(f"client {number}")
        assert limiter.take("regular") > 0
    assert len(limiter) == 100
