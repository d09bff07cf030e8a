"""Dynamic batching: one task takes batches from the queue while the machine has room for them.

`admission` holds the queue, `entries` sees to it that each image is answered once, `scheduler`
says which entries form the next batch; this module runs the loop between them, starts and
drains it. All of it lives on the event loop, so there are no locks; the model's own threads are
behind `run_batch`. A batch is chosen only when it can begin: where a machine says when it has
`room`, the next one may begin before the last one has ended in all of its parts. A forward that
fails ends its own batch only. While nobody waits, the loop does idle work in short steps
(measuring, comparing), never beside a batch.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from server.admission import ANY_TERMS, AdmissionQueue, Reservation, Terms
from server.clock import Clock
from server.entries import Entry, ItemResult, Submission
from server.errors import ForwardFailed, ServeError
from server.idle import IdleWork
from server.scheduler import Scheduler
from server.stats import BatchOutcome, BatchStats, LoadSnapshot, RequestStats, notify

__all__ = ["BatchOutcome", "Batcher", "ItemResult", "Reservation", "Submission", "Terms"]

logger = logging.getLogger(__name__)

RunBatch = Callable[[Sequence[Any], int], Awaitable[BatchOutcome]]
Room = Callable[[], Awaitable[None]]
Served = Callable[[Any, Any, int], None]
"""(payload, output, r) of each image that was served."""

_batch_ids = itertools.count(1)

IDLE_AFTER_S = 0.05
"""Idle work waits for so long a pause, and leaves one between its steps."""


class Batcher:
    """Dynamic batching over a bounded queue.

    Args:
        run_batch: the model: payloads and a degree in, one output per payload out.
        scheduler: keeps the queue and chooses batches.
        clock: the event loop's clock.
        max_batch_size: most images in one batch.
        max_queue_delay_s: how long to wait for a fuller batch when the model was idle.
        queue_size: most images that wait or are being decoded.
        room: waits until the machine can begin another batch; None: when the last one has ended.
        on_batch: observers of each batch.
        on_request: observers of each image's end, whatever it was; `bad_image` excepted, as
            such an image never gets here.
        on_served: told of each result.
        on_offered: told when and how many images ask for places, granted or not.
        idle_work: done while nobody waits.
    """

    def __init__(
        self,
        run_batch: RunBatch,
        scheduler: Scheduler[Entry],
        clock: Clock,
        *,
        max_batch_size: int,
        max_queue_delay_s: float,
        queue_size: int,
        room: Room | None = None,
        on_batch: Sequence[Callable[[BatchStats], None]] = (),
        on_request: Sequence[Callable[[RequestStats], None]] = (),
        on_served: Served | None = None,
        on_offered: Callable[[float, int], None] = lambda now, places: None,
        idle_work: IdleWork | None = None,
    ) -> None:
        self._run_batch = run_batch
        self._scheduler = scheduler
        self._clock = clock
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._room = room
        self._running: set[asyncio.Task[None]] = set()
        self._last_end: dict[int, float] = {}  # by device
        self._on_batch = on_batch
        self._on_served = on_served
        self._idle_work = idle_work
        self._queue = AdmissionQueue(
            *(scheduler, clock, queue_size),
            on_request=on_request,
            on_admit=self._wake,
            on_offered=on_offered,
        )
        self._work = asyncio.Event()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether batches are being run."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to run batches, as a task of the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="batcher")

    def reserve(self, places: int, terms: Terms = ANY_TERMS) -> Reservation:
        """Hold places for all images of a request, or for none, before they are decoded.

        Raises:
            ServeError: they are refused; see `AdmissionQueue.reserve`.
        """
        return self._queue.reserve(places, terms)

    def submit_all(self, submissions: Sequence[Submission]) -> list[asyncio.Future[ItemResult]]:
        """Admit all or none; raises what `reserve` raises."""
        first = submissions[0]
        terms = Terms(first.deadline, first.max_r, first.priority)
        with self.reserve(len(submissions), terms) as reservation:
            return [reservation.submit(submission) for submission in submissions]

    def load(self) -> LoadSnapshot:
        """Return what a policy needs to know; its SLO and levels are the controller's to add."""
        return self._scheduler.load(self._clock())

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

    async def close(self, reason: ServeError | None = None) -> None:
        """Stop at once; whatever is still open is answered with `reason`, or `Draining`."""
        self._queue.drain(reason)
        tasks = [*self._running, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._queue.close()

    def _wake(self) -> None:
        self._work.set()
        if len(self._queue) >= self._max_batch_size:
            self._full.set()

    async def _run(self) -> None:
        try:
            while True:
                await self._wait_for_work()
                if not self._running:
                    await self._wait_for_more()
                while len(self._queue):
                    await self._wait_for_room()
                    await self._serve_next()
                self._work.clear()
                self._full.clear()
        except Exception:
            logger.critical("the batch loop broke; the server cannot go on", exc_info=True)
        finally:
            self._queue.close()

    async def _wait_for_work(self) -> None:
        """Return when somebody waits; until then do idle work, in pauses of the traffic."""
        while self._idle_work is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_AFTER_S):
                    await self._work.wait()
            if self._work.is_set():
                return
            if not self._scheduler.held and not self._running:
                await self._idle_step(self._idle_work)
        await self._work.wait()

    async def _idle_step(self, work: IdleWork) -> None:
        try:
            await work.step()
        except Exception:
            logger.exception("idle work failed")

    async def _wait_for_more(self) -> None:
        """Give further images a moment to join the first one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_queue_delay_s):
                await self._full.wait()

    async def _wait_for_room(self) -> None:
        """Return when a batch can begin; where the machine does not tell, when none is running."""
        if self._room is not None:
            await self._room()
            return
        while self._running:
            await asyncio.wait(self._running)

    async def _serve_next(self) -> None:
        """Begin the next batch, if anyone waits who can be served."""
        selection = self._scheduler.next_batch(self._clock())
        for entry in selection.expired:
            self._queue.entries.expire(entry)
        for entry in selection.shed:
            self._queue.entries.shed(entry, selection.retry_after_s)
        batch_id = next(_batch_ids)
        batch = self._queue.start(selection.batch, batch_id)
        if batch:
            limited = selection.r != selection.wanted_r
            serving = self._serve(batch, selection.r, batch_id, limited=limited)
            task = asyncio.get_running_loop().create_task(serving, name="batch")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            await asyncio.sleep(0)  # until it is handed over, the machine seems to have room

    async def _serve(self, batch: list[Entry], r: int, batch_id: int, limited: bool) -> None:
        started_at = self._clock()
        running = self._scheduler.batch_started(started_at, len(batch), r)
        stats: BatchStats | None = None
        try:
            outcome = await self._forward([entry.payload for entry in batch], r)
            stats = self._stats(outcome, batch_id, started_at, limited)
        except Exception as error:
            told = isinstance(error, ForwardFailed)  # whoever raises it has logged the cause
            logger.error("a batch of %d at r=%d failed", len(batch), r, exc_info=not told)
            for entry in batch:
                self._queue.entries.fail(entry, _forward_failed(error), r)
            return
        finally:
            self._scheduler.batch_ended(stats, running)
        notify(self._on_batch, stats)
        for entry, output in zip(batch, outcome.outputs, strict=True):
            self._answer(entry, output, outcome)

    def _stats(
        self, outcome: BatchOutcome, batch_id: int, started_at: float, limited: bool
    ) -> BatchStats:
        now = self._clock()
        overlap_s = max(0.0, self._last_end.get(outcome.device, 0.0) - started_at)
        self._last_end[outcome.device] = now
        merge_s, compute_s = outcome.merge_s, outcome.compute_s
        handover_s = max(0.0, now - started_at - merge_s - compute_s)
        if overlap_s and outcome.busy_s is not None:
            overlap_s = max(0.0, compute_s + handover_s - outcome.busy_s)
        return BatchStats(
            outcome.r,
            len(outcome.outputs),
            merge_s,
            compute_s,
            started_at,
            limited,
            handover_s=handover_s,
            overlap_s=overlap_s,
            partial=outcome.partial,
            device=outcome.device,
            id=batch_id,
        )

    def _answer(self, entry: Entry, output: Any, outcome: BatchOutcome) -> None:
        if isinstance(output, Exception):
            failure = _forward_failed(output)
            self._queue.entries.fail(entry, failure, outcome.r, outcome.compute_s)
            return
        self._queue.entries.finish(entry, output, outcome)
        if self._on_served is not None:
            try:
                self._on_served(entry.payload, output, outcome.r)
            except Exception:
                logger.exception("an observer of results failed")

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


def _forward_failed(error: Exception) -> ForwardFailed:
    """Return what the client is told, without the inside story."""
    if isinstance(error, ForwardFailed):
        return type(error)(error.detail)
    failure = ForwardFailed("The model failed on this image's batch; it can be sent again.")
    failure.__cause__ = error
    return failure
