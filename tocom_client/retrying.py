"""Whether, and when, a request is sent again: numbers in, numbers out; no clock, no I/O.

Three things keep many clients from making an overload worse. A server that says when to come back
is obeyed, and a random share is added, so that those who were refused together do not come back
together. A budget that all calls of a client share lets retries be a fraction of its calls, and no
more. And a deadline ends it all: nothing is waited for that it would not outlive.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tocom_client.errors import TocomClientError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a call is.

    Attributes:
        attempts: how often a request is sent at most; 1: it is never repeated.
        first_delay_s: the wait before the second attempt, where the server names none; doubles
            from attempt to attempt.
        longest_delay_s: where the doubling ends.
        longest_retry_after_s: a server that asks for a longer pause than this gets none; the call
            ends with what it said.
        budgeted: whether retries draw on the client's `RetryBudget`.
    """

    attempts: int = 4
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0
    longest_retry_after_s: float = 60.0
    budgeted: bool = True

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}: expected at least 1, which never repeats")
        for name in ("first_delay_s", "longest_delay_s", "longest_retry_after_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: expected seconds, not less than 0")

    def backoff_s(self, failures: int, draw: float) -> float:
        """The wait after so many failures in a row: the upper half of a doubling range.

        Args:
            failures: from 1 on.
            draw: from 0 to 1, drawn at random.
        """
        doublings = min(failures - 1, 1000)  # more is no float any more
        whole_s = min(self.longest_delay_s, self.first_delay_s * 2.0**doublings)
        return whole_s * (0.5 + 0.5 * draw)

    def wait_s(self, error: TocomClientError, failures: int, draw: float) -> float | None:
        """How long to wait before the next attempt; None: there is to be none.

        Args:
            error: how the last attempt ended.
            failures: attempts so far, from 1 on.
            draw: from 0 to 1, drawn at random.
        """
        if not error.repeatable or failures >= self.attempts:
            return None
        asked_s = error.retry_after_s or 0.0
        if asked_s > self.longest_retry_after_s:
            return None
        obeyed_s = asked_s + min(SPREAD * asked_s, self.longest_delay_s) * draw
        return max(obeyed_s, self.backoff_s(failures, draw))


SPREAD = 0.25
"""So much is added at most to what a server asks for."""

NEVER = RetryPolicy(attempts=1)
"""Each request is sent once."""

PATIENT = RetryPolicy(attempts=10, budgeted=False)
"""For `classify_many`: it keeps a fixed number of requests under way, and those that wait are not
sent, so that it cannot multiply anybody's load."""


class RetryBudget:
    """What share of a client's calls may be retries; safe to share among threads.

    Args:
        share: retries per call, in the long run.
        reserve: retries that may come at once; also how much is saved up at most.

    Raises:
        ValueError: one of them is negative or no number.
    """

    def __init__(self, share: float = 0.2, reserve: float = 10.0) -> None:
        if not (0 <= share < math.inf and 0 <= reserve < math.inf):
            raise ValueError(f"share={share}, reserve={reserve}: expected numbers from 0 on")
        self._share = share
        self._reserve = reserve
        self._left = reserve
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A call begins, which earns its share of a retry."""
        with self._lock:
            self._left = min(self._reserve, self._left + self._share)

    def take(self) -> bool:
        """Take one retry, if there is one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Timer:
    """The seconds that a call still has.

    Args:
        clock: seconds that only grow.
        seconds: from now on; None: endless.

    Raises:
        ValueError: it is no positive number of seconds.
    """

    def __init__(self, clock: Callable[[], float], seconds: float | None) -> None:
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"a deadline of {seconds} s: expected seconds, more than 0")
        self.seconds = seconds
        self._clock = clock
        self._ends = math.inf if seconds is None else clock() + seconds

    def left_s(self) -> float:
        """Seconds until the end, below 0 after it."""
        return self._ends - self._clock()
