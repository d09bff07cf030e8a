"""Which waiting requests form the next batch, and at which degree: a pure function.

It sees a snapshot of the queue and returns a choice; it owns no state, no clock and no lock,
so that the batcher and a simulation can use the same rules.

Order: by priority, and within a priority by the time each request is due. A request that waits
rises by one priority each `AGEING_S`, and none is due later than `PATIENCE_S` after it came, so
nobody starves. Requests that would miss their deadline even if served alone now go last: they
are late or lost anyway, and others can still be saved; they expire when their time has come.

Degree: the controller's, or the request's own `max_r` where that is lower. The batch takes the
degree of the first in order and, in order, those with the same degree. The others stay for a
batch of their own, and are then first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

AGEING_S = 1.0
PATIENCE_S = 1.0


@dataclass(slots=True)
class PendingRequest:
    """One image that waits.

    Attributes:
        id: unique; breaks ties, first come first served.
        arrived_at: when it entered the queue.
        deadline: when its answer is worth nothing any more; None means never.
        max_r: the highest degree it accepts; None accepts any.
        priority: 0 high, 1 normal, 2 low.
        payload: what the model gets.
    """

    id: int
    arrived_at: float
    deadline: float | None = None
    max_r: int | None = None
    priority: int = 1
    payload: Any = None

    def degree(self, r: int) -> int:
        """Return the degree it is served at when the controller says `r`."""
        return r if self.max_r is None else min(r, self.max_r)


RequestT = TypeVar("RequestT", bound=PendingRequest)
BatchEstimate = Callable[[int, int], float]
"""(degree, images) → seconds; 0 where nothing is known."""


@dataclass(frozen=True, slots=True)
class Selection(Generic[RequestT]):
    """The next batch (empty if nothing can be served), its degree, and whose time is over."""

    batch: list[RequestT]
    r: int
    expired: list[RequestT]


def unknown_duration(r: int, size: int) -> float:
    """Estimate nothing: every batch is believed to take no time."""
    return 0.0


def select_batch(
    queue: Sequence[RequestT],
    now: float,
    r: int,
    max_batch_size: int,
    batch_estimate_s: BatchEstimate = unknown_duration,
    max_batch_s: float = math.inf,
) -> Selection[RequestT]:
    """Choose the next batch.

    Args:
        queue: the waiting requests, in any order; not changed.
        now: the time, on the clock of `arrived_at` and `deadline`.
        r: the degree that the controller wants.
        max_batch_size: most images in the batch.
        batch_estimate_s: how long a batch is believed to take.
        max_batch_s: longest time that the batch should take; one image is always served.

    Returns:
        The batch, at one degree that none of its requests objects to, no larger than its
        tightest deadline and `max_batch_s` allow; and the requests past their deadline, which
        must not be served.
    """
    expired = [p for p in queue if p.deadline is not None and p.deadline <= now]
    waiting = [p for p in queue if p.deadline is None or p.deadline > now]
    waiting.sort(key=lambda p: _rank(p, now, r, batch_estimate_s))
    if not waiting:
        return Selection([], r, expired)
    batch_r = waiting[0].degree(r)
    alike = [p for p in waiting if p.degree(r) == batch_r]
    estimate = [batch_estimate_s(batch_r, size) for size in range(1, max_batch_size + 1)]
    return Selection(_fill(alike, now, estimate, max_batch_s), batch_r, expired)


def _rank(
    request: PendingRequest, now: float, r: int, batch_estimate_s: BatchEstimate
) -> tuple[bool, int, float, int]:
    """Return the sort key: hopeless last, then aged priority, then due time, then arrival."""
    priority = max(0, request.priority - int((now - request.arrived_at) / AGEING_S))
    due = request.arrived_at + PATIENCE_S
    if request.deadline is None:
        return False, priority, due, request.id
    hopeless = request.deadline < now + batch_estimate_s(request.degree(r), 1)
    return hopeless, priority, min(due, request.deadline), request.id


def _fill(
    alike: Sequence[RequestT], now: float, estimate: Sequence[float], max_batch_s: float
) -> list[RequestT]:
    """Take requests in order as long as the batch stays short enough for all that are in it."""
    alone_at = now + estimate[0]
    done_by = min(now + max_batch_s, _meetable_deadline(alike[0], alone_at))
    batch = [alike[0]]
    for request in alike[1:]:
        if len(batch) == len(estimate):
            break
        done_at = now + estimate[len(batch)]
        if done_at > done_by:
            break
        deadline = _meetable_deadline(request, alone_at)
        if done_at <= deadline:
            batch.append(request)
            done_by = min(done_by, deadline)
    return batch


def _meetable_deadline(request: PendingRequest, alone_at: float) -> float:
    """Return the deadline, or infinity where there is none or it cannot be met in any batch."""
    if request.deadline is None or request.deadline < alone_at:
        return math.inf
    return request.deadline
