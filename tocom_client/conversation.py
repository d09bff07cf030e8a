"""How a call goes on from one attempt to the next, without doing any of it itself.

A conversation is a generator: it yields what is to be done next (send this, wait so long, read this
image), is told what came of it, and returns the result or raises. `Client` does these steps in the
calling thread and `AsyncClient` on an event loop; which steps there are, and in which order, stands
here alone. So a test can play the server, the clock and the dice.
"""

import math
import random
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import TypeAlias, TypeVar

from tocom_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidImage,
    NotReady,
    Overloaded,
    TocomClientError,
)
from tocom_client.images import EncodedImage, ImageSource
from tocom_client.retrying import RetryBudget, RetryPolicy, Timer
from tocom_client.wire import Answer, Call, Lost, Request, failure_of, loss_of

T = TypeVar("T")

GRACE_S = 0.2
"""So much longer than the deadline an attempt is waited for: the server's own 504 says more, and
keeps the connection."""
LEAST_S = 0.001
"""With less than that left nothing is sent: no answer could be in time."""
LONGEST_DEADLINE_S = 3600.0
"""The most that the server takes."""
PROBE_S = 5.0
"""How long one look at whether the server is ready may take."""
LOOK_FIRST_S, LOOK_EVERY_S = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Send:
    """Send this, and say what came."""

    request: Request


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Encode:
    """Read this image, which may take the disk its time; say why if that is not possible."""

    source: ImageSource


Step: TypeAlias = Send | Sleep | Encode
Done: TypeAlias = Answer | Lost | EncodedImage | InvalidImage | None
Talk: TypeAlias = Generator[Step, Done, T]


@dataclass(frozen=True)
class Terms:
    """What all calls of a client go by.

    Attributes:
        retry: how patient they are.
        budget: what they share of retries.
        timeout_s: how long an attempt may take where no deadline ends it earlier.
        clock: seconds that only grow.
        draw: a number from 0 to 1, at random.
        now: the date.
        new_id: what the next call is named, in the server's log and in errors.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: RetryBudget = field(default_factory=RetryBudget)
    timeout_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(f"timeout_s={self.timeout_s}: expected seconds, more than 0")

    def patient(self, retry: RetryPolicy) -> "Terms":
        """The same, but for how patient they are."""
        return replace(self, retry=retry)


def converse(call: Call[T], terms: Terms, timer: Timer, request_id: str) -> Talk[T]:
    """Send a request until there is an answer that counts.

    Args:
        call: what is asked.
        terms: of the client.
        timer: the deadline of the whole call, which may have been started earlier.
        request_id: names all attempts.

    Raises:
        TocomClientError: how the last attempt ended; `attempts` says how many there were.
    """
    terms.budget.begin()
    for attempt in count(1):
        left_s = timer.left_s()
        if left_s < LEAST_S:
            raise _too_late(timer, request_id)
        done = yield Send(_request(call, terms, left_s, request_id))
        result = _judge(call, done, terms, timer, request_id)
        if not isinstance(result, TocomClientError):
            return result
        result.attempts = attempt
        wait_s = terms.retry.wait_s(result, attempt, terms.draw())
        if wait_s is None or wait_s >= timer.left_s():
            raise result
        if terms.retry.budgeted and not terms.budget.take():
            result.add_note("Not repeated: too many of this client's calls have been retries.")
            raise result
        yield Sleep(wait_s)
    raise AssertionError("attempts are counted without end")


def until_ready(terms: Terms, timeout_s: float) -> Talk[None]:
    """Ask whether the server is ready until it is.

    Raises:
        NotReady, ConnectionFailed, Overloaded: it was not in time; how it last answered.
        TocomClientError: what answers is no such server.
    """
    timer = Timer(terms.clock, timeout_s)
    for look in count(1):
        problem = yield from _readiness(terms, min(PROBE_S, max(LEAST_S, timer.left_s())))
        if problem is None:
            return
        wait_s = min(LOOK_EVERY_S, LOOK_FIRST_S * 2.0 ** min(look, 20))
        if wait_s >= timer.left_s():
            problem.add_note(f"The server did not become ready within {timeout_s:g} s.")
            raise problem
        yield Sleep(wait_s)


def is_ready(terms: Terms) -> Talk[bool]:
    """Look once; nobody there is a no, too."""
    return (yield from _readiness(terms, PROBE_S)) is None


def _readiness(terms: Terms, within_s: float) -> Talk[TocomClientError | None]:
    """None: ready; else why not, as far as waiting may help."""
    request_id = terms.new_id()
    headers = {"x-request-id": request_id}
    done = yield Send(Request("GET", "/readyz", {}, headers, (), None, within_s))
    if isinstance(done, Lost):
        return loss_of(done, request_id, repeatable=True)
    assert isinstance(done, Answer)
    if done.good:
        return None
    problem = failure_of(done, request_id, terms.now())
    if not isinstance(problem, NotReady | Overloaded | ConnectionFailed):
        raise problem
    return problem


def _request(call: Call[T], terms: Terms, left_s: float, request_id: str) -> Request:
    query = dict(call.query)
    if call.deadlined and math.isfinite(left_s):
        # Whole milliseconds: the server keeps the queries that it has seen.
        query["deadline_ms"] = str(max(1, int(1000 * min(left_s, LONGEST_DEADLINE_S))))
    within_s = min(left_s + GRACE_S, terms.timeout_s + call.extra_s)
    headers = {"x-request-id": request_id}
    return Request(call.method, call.path, query, headers, call.images, call.json, within_s)


def _judge(
    call: Call[T], done: Done, terms: Terms, timer: Timer, request_id: str
) -> T | TocomClientError:
    """What came of an attempt: the result, or the error that it ended with."""
    if isinstance(done, Lost):
        if timer.left_s() <= 0:
            return _too_late(timer, request_id)
        return loss_of(done, request_id, call.repeatable)
    assert isinstance(done, Answer)
    if not done.good:
        return failure_of(done, request_id, terms.now())
    return call.read(done)


def _too_late(timer: Timer, request_id: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"there was no answer within {timer.seconds:g} s; give more time, or allow a higher degree",
        request_id=request_id,
    )
