"""Dynamic batching: one task that takes batches from the queue and runs them in turn.

`admission` holds the queue, `entries` sees to it that each image is answered once, `scheduler`
says which entries form the next batch; this module runs the loop between them, starts and
drains it. All of it lives on the event loop, so there are no locks; the model's own thread is
behind `run_batch`. A forward that fails ends its own batch only.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from server.admission import AdmissionQueue, Reservation
from server.clock import Clock
from server.entries import Entry, ItemResult, Submission
from server.errors import ForwardFailed
from server.scheduler import BatchEstimate, Selection, select_batch, unknown_duration
from server.stats import BatchOutcome, BatchStats, LoadSnapshot, RequestStats, notify

__all__ = ["BatchOutcome", "Batcher", "ItemResult", "Reservation", "Submission"]

logger = logging.getLogger(__name__)

RunBatch = Callable[[Sequence[Any], int], Awaitable[BatchOutcome]]
DRAIN_RATE_WEIGHT = 0.2


class Batcher:
    """Dynamic batching over a bounded queue.

    Args:
        run_batch: the model: payloads and a degree in, one output per payload out.
        choose_r: asked before each batch for its degree.
        clock: the event loop's clock.
        max_batch_size: most images in one batch.
        max_queue_delay_s: how long to wait for a fuller batch when the model was idle.
        queue_size: most images that wait or are being decoded.
        on_batch: observers of each batch.
        on_request: observers of each image's end, whatever it was; `bad_image` excepted, as
            such an image never gets here.
        estimate_batch_s: believed duration of a batch; keeps batches inside their deadlines.
        max_batch_s: longest time that a batch should take as long as nobody has waited longer;
            beyond that, throughput matters more and batches grow.
    """

    def __init__(
        self,
        run_batch: RunBatch,
        choose_r: Callable[[LoadSnapshot], int],
        clock: Clock,
        *,
        max_batch_size: int,
        max_queue_delay_s: float,
        queue_size: int,
        on_batch: Sequence[Callable[[BatchStats], None]] = (),
        on_request: Sequence[Callable[[RequestStats], None]] = (),
        estimate_batch_s: BatchEstimate = unknown_duration,
        max_batch_s: float = math.inf,
    ) -> None:
        self._run_batch = run_batch
        self._choose_r = choose_r
        self._clock = clock
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._on_batch = on_batch
        self._estimate_batch_s = estimate_batch_s
        self._max_batch_s = max_batch_s
        self._queue = AdmissionQueue(clock, queue_size, on_request=on_request, on_admit=self._wake)
        self._work = asyncio.Event()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._last_r = 0
        self._drain_rate: float | None = None

    @property
    def alive(self) -> bool:
        """Whether batches are being run."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to run batches, as a task of the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="batcher")

    def reserve(self, places: int) -> Reservation:
        """Hold places for all images of a request, or for none, before they are decoded.

        Raises:
            Draining: the server is shutting down.
            NotReady: batches are no longer being run.
            BadParameter: the queue could never hold so many.
            QueueFull: it cannot now.
        """
        return self._queue.reserve(places, self._drain_rate)

    def submit_all(self, submissions: Sequence[Submission]) -> list[asyncio.Future[ItemResult]]:
        """Admit all or none; raises what `reserve` raises."""
        with self.reserve(len(submissions)) as reservation:
            return [reservation.submit(submission) for submission in submissions]

    def load(self) -> LoadSnapshot:
        """Return what a policy needs to know; its SLO and levels are the controller's to add."""
        return self._queue.load(self._in_flight)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new work, finish what was admitted, and stop.

        Returns:
            Whether all was finished in time; what was not got `Draining` as its answer.
        """
        self._queue.drain()
        self._full.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.quiet.wait()
            return True
        except TimeoutError:
            return False
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop at once; whatever is still open is answered with `Draining`."""
        self._queue.drain()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._queue.close()

    def _wake(self) -> None:
        self._work.set()
        if len(self._queue) >= self._max_batch_size:
            self._full.set()

    async def _run(self) -> None:
        try:
            while True:
                await self._work.wait()
                await self._wait_for_more()
                while len(self._queue):
                    await self._serve_next()
                self._work.clear()
                self._full.clear()
        except Exception:
            logger.critical("the batch loop broke; the server cannot go on", exc_info=True)
        finally:
            self._queue.close()

    async def _wait_for_more(self) -> None:
        """Give further images a moment to join the first one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_queue_delay_s):
                await self._full.wait()

    async def _serve_next(self) -> None:
        load = self.load()
        wanted = self._degree(load)
        selection = self._select(load, wanted)
        for entry in selection.expired:
            self._queue.entries.expire(entry)
        if selection.batch:
            self._queue.start(selection.batch)
            await self._serve(selection.batch, selection.r, limited=selection.r != wanted)

    def _degree(self, load: LoadSnapshot) -> int:
        """Ask for the degree; a fault in the answer must not stop the answers."""
        try:
            self._last_r = self._choose_r(load)
        except Exception:
            logger.exception("choosing r failed; staying at r=%d", self._last_r)
        return self._last_r

    def _select(self, load: LoadSnapshot, r: int) -> Selection[Entry]:
        return select_batch(
            self._queue.waiting(),
            load.now,
            r,
            self._max_batch_size,
            self._estimate_batch_s,
            max(self._max_batch_s, load.oldest_wait_s),
        )

    async def _serve(self, batch: list[Entry], r: int, limited: bool) -> None:
        started_at = self._clock()
        self._in_flight = len(batch)
        try:
            outcome = await self._forward([entry.payload for entry in batch], r)
        except Exception as error:
            told = isinstance(error, ForwardFailed)  # whoever raises it has logged the cause
            logger.error("a batch of %d at r=%d failed", len(batch), r, exc_info=not told)
            for entry in batch:
                self._queue.entries.fail(entry, _forward_failed(error), r)
            return
        finally:
            self._in_flight = 0
        self._note_batch(outcome, started_at, limited)
        for entry, output in zip(batch, outcome.outputs, strict=True):
            if isinstance(output, Exception):
                self._queue.entries.fail(
                    entry, _forward_failed(output), outcome.r, outcome.compute_s
                )
            else:
                self._queue.entries.finish(entry, output, outcome)

    async def _forward(self, payloads: list[Any], r: int) -> BatchOutcome:
        try:
            outcome = await self._run_batch(payloads, r)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RuntimeError("the forward was cancelled from elsewhere") from None
        if len(outcome.outputs) != len(payloads):
            raise RuntimeError(f"{len(outcome.outputs)} outputs for {len(payloads)} images")
        return outcome

    def _note_batch(self, outcome: BatchOutcome, started_at: float, limited: bool) -> None:
        size = len(outcome.outputs)
        busy_s = outcome.merge_s + outcome.compute_s
        if busy_s > 0:
            before = self._drain_rate or size / busy_s
            self._drain_rate = before + DRAIN_RATE_WEIGHT * (size / busy_s - before)
        stats = BatchStats(outcome.r, size, outcome.merge_s, outcome.compute_s, started_at, limited)
        notify(self._on_batch, stats)


def _forward_failed(error: Exception) -> ForwardFailed:
    """Return what the client is told, without the inside story."""
    if isinstance(error, ForwardFailed):
        return ForwardFailed(error.detail)
    failure = ForwardFailed("The model failed on this image's batch; it can be sent again.")
    failure.__cause__ = error
    return failure
