"""The bounded queue: who may come in, and who is owed an answer.

A place is reserved before its image is decoded, all images of a request or none, so that a
request which cannot be served costs no decoding; `Reservation.submit` turns the place into an
entry with a future. `scheduler` knows who waits and who could be in time, `entries` sees to the
answers; this module holds the two together.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from server.clock import Clock
from server.entries import Entry, ItemResult, OpenEntries, Submission
from server.errors import (
    BadParameter,
    DeadlineExpired,
    Draining,
    NotReady,
    Overloaded,
    QueueFull,
    ServeError,
)
from server.pending import Refusal
from server.scheduler import Scheduler
from server.stats import Outcome, RequestStats, notify

MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks for, as far as it bears on its admission."""

    deadline: float | None = None
    max_r: int | None = None
    priority: int = 1


ANY_TERMS = Terms()


class Reservation:
    """Places in the queue, held while the images are decoded.

    A context manager: places that were not used when it ends are given back.
    """

    def __init__(
        self, queue: "AdmissionQueue", places: int, priority: int, received_at: float
    ) -> None:
        self._queue = queue
        self._places = places
        self._companions = places - 1
        self._priority = priority
        self._received_at = received_at

    @property
    def places(self) -> int:
        """How many places are left."""
        return self._places

    def submit(self, submission: Submission) -> asyncio.Future[ItemResult]:
        """Turn one place into a queue entry; the future yields its result or a `ServeError`."""
        if self._places == 0:
            raise RuntimeError("no place is left: reserve as many as are submitted")
        self._places -= 1
        return self._queue._admit(submission, self._priority, self._received_at, self._companions)

    def release(self) -> None:
        """Give back all places that are left; harmless when done twice."""
        places, self._places = self._places, 0
        self._queue._give_back(places, self._priority)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class AdmissionQueue:
    """A bounded queue whose places can be held.

    Args:
        scheduler: keeps the queue.
        clock: the event loop's clock.
        size: most images that wait or are being decoded.
        on_request: observers of each image's end, whatever it was.
        on_admit: called when an entry joined the queue.
        on_offered: told when and how many images ask for places, granted or not.

    Attributes:
        entries: all that are owed an answer, waiting or in a batch.
        quiet: set while nothing is reserved and nobody is owed an answer.
    """

    def __init__(
        self,
        scheduler: Scheduler[Entry],
        clock: Clock,
        size: int,
        *,
        on_request: Sequence[Callable[[RequestStats], None]] = (),
        on_admit: Callable[[], None] = lambda: None,
        on_offered: Callable[[float, int], None] = lambda now, places: None,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._size = size
        self._on_request = on_request
        self._on_admit = on_admit
        self._on_offered = on_offered
        self._draining = False
        self._closed = False
        self._reason: ServeError | None = None
        self.entries = OpenEntries(
            clock, on_request, self._forget, scheduler.answered, scheduler.timed_out
        )
        self.quiet = asyncio.Event()
        self.quiet.set()

    def __len__(self) -> int:
        """Return how many images wait."""
        return len(self._scheduler)

    def reserve(self, places: int, terms: Terms = ANY_TERMS) -> Reservation:
        """Hold places for all images of a request, or for none.

        Args:
            places: how many images the request has.
            terms: what it asks for; whether it could be in time depends on it.

        Raises:
            Draining: the server is shutting down.
            NotReady: batches are no longer being run.
            BadParameter: the queue could never hold so many.
            QueueFull: it cannot now.
            Overloaded: it could not be answered in time.
            DeadlineExpired: its deadline is nearer than any answer.
        """
        if self._draining:
            self._refuse("draining", places)
            raise Draining
        if self._closed:
            raise NotReady("Inference has stopped on this server; it must be restarted.")
        if places > self._size:
            raise BadParameter(
                f"{places} images at once do not fit the queue of {self._size}; "
                "send fewer per request"
            )
        now = self._clock()
        self._scheduler.note_arrival(now, places)
        self._on_offered(now, places)
        for entry in self._scheduler.make_room(places, terms.priority):
            self.entries.shed(entry, self._scheduler.drain_s(now))
        refusal = self._scheduler.refusal(
            now,
            places,
            priority=terms.priority,
            deadline=terms.deadline,
            max_r=terms.max_r,
        )
        if refusal is not None:
            self._refuse("expired" if refusal.why == "hopeless" else "shed", places)
            raise self._explain(refusal, places)
        self._give_back(-places, terms.priority)
        return Reservation(self, places, terms.priority, now)

    def start(self, batch: Iterable[Entry], batch_id: int | None = None) -> list[Entry]:
        """Note that these entries go into a batch; those whose client has gone do not."""
        now = self._clock()
        batch = list(batch)
        for entry in batch:
            self.entries.drop_if_cancelled(entry)
        alive = [entry for entry in batch if not entry.future.done()]
        for entry in alive:
            entry.started_at, entry.batch_id, entry.batch_size = now, batch_id, len(alive)
        return alive

    def drain(self, reason: ServeError | None = None) -> None:
        """Refuse new reservations; those that exist may still submit.

        Args:
            reason: what who is still open at the end is told; None means `Draining`.
        """
        self._draining = True
        self._reason = self._reason or reason

    def close(self) -> None:
        """Answer all that is open with the reason, and whatever is still submitted too."""
        self._closed = True
        self.entries.close_all(self._reason)

    def _explain(self, refusal: Refusal, places: int) -> ServeError:
        """Tell the client to come back when the work that is here now will be done."""
        if refusal.why == "hopeless":
            return DeadlineExpired(
                "No answer can be ready before the deadline, however light the load; allow more "
                "time."
            )
        wait_s = min(MAX_RETRY_AFTER_S, max(1.0, refusal.retry_after_s))
        again = f"try again in {math.ceil(wait_s)} s."
        if refusal.why == "late":
            return Overloaded(
                f"{len(self._scheduler)} images wait, and even at the fastest degree this request "
                f"would not be answered in time; {again}",
                retry_after_s=wait_s,
            )
        return QueueFull(
            f"The queue holds {self._scheduler.taken} of {self._size} images and cannot take "
            f"{places} more; {again}",
            retry_after_s=wait_s,
        )

    def _refuse(self, outcome: Outcome, places: int) -> None:
        for _ in range(places):
            notify(self._on_request, RequestStats(outcome, None, 0.0, 0.0, 0.0, 0.0))

    def _admit(
        self, submission: Submission, priority: int, received_at: float, companions: int
    ) -> asyncio.Future[ItemResult]:
        entry = self.entries.open(submission, received_at, companions)
        self._scheduler.admit(entry)
        self._give_back(1, priority)
        if self._closed:
            self.entries.close(entry, self._reason)
        self._on_admit()
        return entry.future

    def _give_back(self, places: int, priority: int) -> None:
        self._scheduler.hold(-places, priority)
        self._update_quiet()

    def _forget(self, entry: Entry) -> None:
        if entry.started_at is None:
            self._scheduler.withdraw(entry)
        self._update_quiet()

    def _update_quiet(self) -> None:
        if len(self.entries) or self._scheduler.held:
            self.quiet.clear()
        else:
            self.quiet.set()
