"""Exactly one answer for each admitted image.

An entry is *open* from its admission until one thing ends it: a result, a failure, its
deadline, its client going away, or the end of the server. `OpenEntries._end` is the only door
out: it lets an entry through once, reports it, and tells the queue, so that what has ended
never reaches the model.

Deadlines use the event loop's timers, so `clock` must be the loop's clock (`time.monotonic` on
a standard loop).
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.clock import Clock
from server.errors import DeadlineExpired, Draining, Overloaded, ServeError
from server.pending import PendingRequest
from server.stats import BatchOutcome, Outcome, RequestStats, notify


@dataclass(frozen=True, slots=True)
class Submission:
    """One decoded image and what its request wants; times are on the server's clock.

    Attributes:
        payload: what the model gets.
        received_at: when the request's first byte came; None means now.
        deadline: when the answer is worth nothing any more; None means never.
        max_r: the highest degree that the request accepts; None accepts any.
        priority: 0 high, 1 normal, 2 low.
        decode_s: how long decoding took; only reported.
        on_end: told how this image fared.
    """

    payload: Any
    received_at: float | None = None
    deadline: float | None = None
    max_r: int | None = None
    priority: int = 1
    decode_s: float = 0.0
    on_end: Callable[[RequestStats], None] | None = None


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The answer to one image."""

    output: Any
    r: int
    batch_size: int
    queue_s: float
    compute_s: float


@dataclass(slots=True, kw_only=True)
class Entry(PendingRequest):
    """An admitted image and the future of whoever waits for it.

    `first_byte_at` is when its request began to come in; `started_at` when its batch began, None
    while it waits.
    """

    future: asyncio.Future[ItemResult]
    first_byte_at: float
    decode_s: float
    on_end: Callable[[RequestStats], None] | None = None
    batch_id: int | None = None
    batch_size: int = 0
    timer: asyncio.TimerHandle | None = None
    started_at: float | None = None


class OpenEntries:
    """All images that were admitted and not answered yet, and the ways to answer them.

    Args:
        clock: the event loop's clock.
        on_request: observers of each image's end, whatever it was.
        on_end: called with each entry that has ended, before anyone hears of it.
        on_result: called with each entry that ends with a result, and the time.
        on_timeout: called when an entry's deadline has come before the scheduler gave it up.
    """

    def __init__(
        self,
        clock: Clock,
        on_request: Sequence[Callable[[RequestStats], None]],
        on_end: Callable[[Entry], None],
        on_result: Callable[[float, Entry], None] = lambda now, entry: None,
        on_timeout: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._on_request = on_request
        self._on_end = on_end
        self._on_result = on_result
        self._on_timeout = on_timeout
        self._ids = itertools.count()
        self._open: dict[int, Entry] = {}

    def __len__(self) -> int:
        """Return how many images are still owed an answer."""
        return len(self._open)

    def open(self, submission: Submission, received_at: float, companions: int = 0) -> Entry:
        """Admit an image: from now on it is owed an answer.

        Args:
            submission: the image and what its request wants.
            received_at: when its request was complete.
            companions: how many other images the request has.
        """
        loop = asyncio.get_running_loop()
        now = self._clock()
        entry = Entry(
            id=next(self._ids),
            arrived_at=now,
            deadline=submission.deadline,
            max_r=submission.max_r,
            priority=submission.priority,
            payload=submission.payload,
            future=loop.create_future(),
            received_at=received_at,
            companions=companions,
            first_byte_at=received_at if submission.received_at is None else submission.received_at,
            decode_s=submission.decode_s,
            on_end=submission.on_end,
        )
        self._open[entry.id] = entry
        entry.future.add_done_callback(lambda _: self.drop_if_cancelled(entry))
        if entry.deadline is not None:
            entry.timer = loop.call_later(max(0.0, entry.deadline - now), self._time_out, entry)
        return entry

    # Each of these ends an entry, unless it has ended already.

    def finish(self, entry: Entry, output: Any, outcome: BatchOutcome) -> None:
        """Answer with a result."""
        if self._end(entry, "ok", outcome.r, outcome.compute_s):
            self._on_result(self._clock(), entry)
            size, queue_s = len(outcome.outputs), self._queue_s(entry)
            entry.future.set_result(ItemResult(output, outcome.r, size, queue_s, outcome.compute_s))

    def fail(self, entry: Entry, error: ServeError, r: int, compute_s: float = 0.0) -> None:
        """Answer with the model's failure."""
        self._end_with(entry, error, "failed", r, compute_s)

    def expire(self, entry: Entry) -> None:
        """Answer that the deadline has passed."""
        if entry.started_at is not None:
            what = "The deadline passed while the image was being computed"
        elif entry.deadline is None or self._clock() >= entry.deadline:
            what = "The deadline passed while the image waited in the queue"
        else:
            what = "The deadline cannot be kept any more, so the image was not computed"
        detail = f"{what}; allow more time or send less."
        self._end_with(entry, DeadlineExpired(detail), "expired")

    def drop_if_cancelled(self, entry: Entry) -> None:
        """Forget the image if its client has gone: nobody waits for an answer."""
        if entry.future.cancelled():
            self._end(entry, "abandoned")

    def shed(self, entry: Entry, retry_after_s: float) -> None:
        """Answer that it would come too late: the load is more than the fastest degree serves."""
        detail = (
            "The server is overloaded and could not answer within its latency objective; try again "
            f"in {math.ceil(max(1.0, retry_after_s))} s."
        )
        self._end_with(entry, Overloaded(detail, retry_after_s=retry_after_s), "shed")

    def close(self, entry: Entry, reason: ServeError | None = None) -> None:
        """Answer that the server stops, and why if there is a reason of its own."""
        if reason is not None:
            self._end_with(entry, reason, "failed")
            return
        detail = "The server stopped before this image's turn; send it to another one."
        self._end_with(entry, Draining(detail), "draining")

    def close_all(self, reason: ServeError | None = None) -> None:
        """Answer whatever is open that the server stops."""
        for entry in list(self._open.values()):
            self.close(entry, reason)

    def _time_out(self, entry: Entry) -> None:
        self._on_timeout()
        self.expire(entry)

    def _end_with(
        self,
        entry: Entry,
        error: ServeError,
        outcome: Outcome,
        r: int | None = None,
        compute_s: float = 0.0,
    ) -> None:
        if self._end(entry, outcome, r, compute_s):
            entry.future.set_exception(error)
            entry.future.exception()  # whoever left without looking causes no warning

    def _end(
        self, entry: Entry, outcome: Outcome, r: int | None = None, compute_s: float = 0.0
    ) -> bool:
        """Take the entry off the books and report it; whether it still wants an answer."""
        if self._open.pop(entry.id, None) is None:
            return False
        if entry.timer is not None:
            entry.timer.cancel()
        self._on_end(entry)
        gone = entry.future.cancelled()
        total_s = self._clock() - entry.first_byte_at
        stats = RequestStats(
            "abandoned" if gone else outcome,
            r,
            entry.decode_s,
            self._queue_s(entry),
            compute_s,
            total_s,
            entry.arrived_at,
            entry.batch_id,
            entry.batch_size,
        )
        if entry.on_end is not None:
            entry.on_end(stats)
        notify(self._on_request, stats)
        return not gone

    def _queue_s(self, entry: Entry) -> float:
        until = self._clock() if entry.started_at is None else entry.started_at
        return until - entry.arrived_at
