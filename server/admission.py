"""The bounded queue: who may come in, and who waits.

A place is reserved before its image is decoded, all images of a request or none, so that a
request which cannot be served costs no decoding; `Reservation.submit` turns the place into an
entry with a future. `entries` sees to the answers.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from server.clock import Clock
from server.entries import Entry, ItemResult, OpenEntries, Submission
from server.errors import BadParameter, Draining, NotReady, QueueFull
from server.meters import ArrivalRate
from server.stats import LoadSnapshot, Outcome, RequestStats, notify

MAX_RETRY_AFTER_S = 60.0


class Reservation:
    """Places in the queue, held while the images are decoded.

    A context manager: places that were not used when it ends are given back.
    """

    def __init__(self, queue: "AdmissionQueue", places: int) -> None:
        self._queue = queue
        self._places = places

    @property
    def places(self) -> int:
        """How many places are left."""
        return self._places

    def submit(self, submission: Submission) -> asyncio.Future[ItemResult]:
        """Turn one place into a queue entry; the future yields its result or a `ServeError`."""
        if self._places == 0:
            raise RuntimeError("no place is left: reserve as many as are submitted")
        self._places -= 1
        return self._queue._admit(submission)

    def release(self) -> None:
        """Give back all places that are left; harmless when done twice."""
        places, self._places = self._places, 0
        self._queue._give_back(places)

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
        clock: the event loop's clock.
        size: most images that wait or are being decoded.
        on_request: observers of each image's end, whatever it was.
        on_admit: called when an entry joined the queue.

    Attributes:
        entries: all that are owed an answer, waiting or in a batch.
        quiet: set while nothing is reserved and nobody is owed an answer.
    """

    def __init__(
        self,
        clock: Clock,
        size: int,
        *,
        on_request: Sequence[Callable[[RequestStats], None]] = (),
        on_admit: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._size = size
        self._on_request = on_request
        self._on_admit = on_admit
        self._reserved = 0
        self._waiting: dict[int, Entry] = {}  # in order of arrival
        self._arrivals = ArrivalRate()
        self._draining = False
        self._closed = False
        self.entries = OpenEntries(clock, on_request, self._forget)
        self.quiet = asyncio.Event()
        self.quiet.set()

    def __len__(self) -> int:
        """Return how many images wait."""
        return len(self._waiting)

    def reserve(self, places: int, drain_rate: float | None) -> Reservation:
        """Hold places for all images of a request, or for none.

        Args:
            places: how many images the request has.
            drain_rate: images/s that leave, to say when to come back; None while unknown.

        Raises:
            Draining: the server is shutting down.
            NotReady: batches are no longer being run.
            BadParameter: the queue could never hold so many.
            QueueFull: it cannot now.
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
        self._arrivals.add(places, self._clock())
        if self._taken + places > self._size:
            self._refuse("shed", places)
            raise self._full(places, drain_rate)
        self._give_back(-places)
        return Reservation(self, places)

    def waiting(self) -> tuple[Entry, ...]:
        """Return the entries that wait, without those whose client has gone."""
        for entry in list(self._waiting.values()):
            self.entries.drop_if_cancelled(entry)
        return tuple(self._waiting.values())

    def start(self, batch: Iterable[Entry]) -> None:
        """Note that these entries left the queue for a batch; their places are free again."""
        now = self._clock()
        for entry in batch:
            del self._waiting[entry.id]
            entry.started_at = now

    def drain(self) -> None:
        """Refuse new reservations; those that exist may still submit."""
        self._draining = True

    def close(self) -> None:
        """Answer all that is open with `Draining`, and whatever is still submitted too."""
        self._closed = True
        self.entries.close_all()

    def load(self, in_flight: int) -> LoadSnapshot:
        """Return what a policy needs to know; its SLO and levels are the controller's to add."""
        now = self._clock()
        oldest = next(iter(self._waiting.values()), None)
        return LoadSnapshot(
            now=now,
            queue_length=len(self._waiting),
            oldest_wait_s=0.0 if oldest is None else now - oldest.arrived_at,
            in_flight=in_flight,
            arrival_rate=self._arrivals.per_second(now),
            recent_latency_s=self.entries.latencies.quantile(0.95, now),
            queue_size=self._size,
        )

    @property
    def _taken(self) -> int:
        return self._reserved + len(self._waiting)

    def _full(self, places: int, drain_rate: float | None) -> QueueFull:
        """Tell the client to come back when the work that is here now will be done."""
        ahead = self._reserved + len(self.entries)
        wait_s = ahead / drain_rate if drain_rate else 0.0
        wait_s = min(MAX_RETRY_AFTER_S, max(1.0, wait_s))
        return QueueFull(
            f"The queue holds {self._taken} of {self._size} images and cannot take {places} "
            f"more; try again in {math.ceil(wait_s)} s.",
            retry_after_s=wait_s,
        )

    def _refuse(self, outcome: Outcome, places: int) -> None:
        for _ in range(places):
            notify(self._on_request, RequestStats(outcome, None, 0.0, 0.0, 0.0, 0.0))

    def _admit(self, submission: Submission) -> asyncio.Future[ItemResult]:
        entry = self.entries.open(submission)
        self._waiting[entry.id] = entry
        self._give_back(1)
        if self._closed:
            self.entries.close(entry)
        self._on_admit()
        return entry.future

    def _give_back(self, places: int) -> None:
        self._reserved -= places
        self._update_quiet()

    def _forget(self, entry: Entry) -> None:
        self._waiting.pop(entry.id, None)
        self._update_quiet()

    def _update_quiet(self) -> None:
        if len(self.entries) or self._reserved:
            self.quiet.clear()
        else:
            self.quiet.set()
