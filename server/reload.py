"""Another model without a pause: loaded and tried beside the one that is served, then swapped in.

The new model gets an engine, a queue and a controller of its own. Up to the swap nothing of the old
one is touched, so that whatever fails leaves it as it was. The swap itself is one assignment on the
event loop: requests whose body is complete from then on go to the new model. Those before stay with
the old one, whose input size they were decoded for and whose labels name their classes; it finishes
them, and the new model's first batch begins after its last. Then the old one's memory is freed.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from server.canary import Verdict, try_out
from server.clock import Clock
from server.core import Core
from server.engine import Engine
from server.errors import ReloadFailed, ReloadInProgress, ServeError, SettingsError
from server.logs import fields
from server.metrics import ReloadOutcome
from server.model_parts import load_parts
from server.reload_choice import choose, shown
from server.reload_schemas import ReloadRequest, ReloadStage, ReloadStatus
from server.settings import Settings
from server.succession import take_over
from tocom_core.errors import TocomError

logger = logging.getLogger(__name__)

T = TypeVar("T")

NICENESS = 10
"""Of the thread that reads files: serving goes first."""
SIDE_BY_SIDE_AFTER_S = 0.25
"""The new model waits for the old one's last batch at least so long, or an SLO, and no longer."""


@dataclass(frozen=True)
class Candidate:
    """A model that is warm, with the settings that it was loaded by."""

    engine: Engine
    settings: Settings
    core: Core


class Reloads:
    """One reload at a time, and what became of the last one.

    Args:
        configured: what the server was started with.
        clock: seconds.
        present: the core that serves.
        wire: warms an engine up and wires a core around it, beside the present one, with a hook
            that is told of each stage.
        swap: lets a candidate serve from now on.
        on_end: told how each reload ended.
    """

    def __init__(
        self,
        configured: Settings,
        clock: Clock,
        *,
        present: Callable[[], Core],
        wire: Callable[[Engine, Settings, Core, Callable[[ReloadStage], None]], Awaitable[Core]],
        swap: Callable[[Candidate], None],
        on_end: Callable[[ReloadOutcome], None],
    ) -> None:
        self.configured = configured
        self.status: ReloadStatus | None = None
        self._settings = configured
        self._clock = clock
        self._present = present
        self._wire = wire
        self._swap = swap
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._retiring: set[asyncio.Task[bool]] = set()

    def start(self, request: ReloadRequest) -> ReloadStatus:
        """Begin; the outcome shows in `status`.

        Raises:
            ReloadInProgress: another one is under way.
            BadParameter: a name leads nowhere.
            NotReady: no model is served yet.
        """
        self._present()
        if self._task is not None and not self._ended.is_set():
            raise ReloadInProgress
        settings = choose(request, self._settings, self.configured)
        self.status = ReloadStatus(
            state="loading",
            model=shown(settings, settings.model),
            bank=shown(settings, settings.bank),
            started_at=datetime.now(UTC),
        )
        self._ended.clear()
        logger.info("reload: model=%s bank=%s", settings.model, settings.bank)
        work = self._run(settings, request.min_agreement, self._task)
        self._task = asyncio.get_running_loop().create_task(work, name="reload")
        return self.status

    async def wait(self, timeout_s: float) -> ReloadStatus:
        """Wait for the end of the reload that is under way, at most so long.

        Raises:
            ReloadFailed: it failed; the model is the one that it was.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        assert self.status is not None
        if self.status.state == "failed":
            raise ReloadFailed(self.status.detail or "", agreement=self.status.agreement)
        return self.status

    async def drain(self, timeout_s: float) -> bool:
        """Give up a reload that has not swapped yet; finish what an old model still owes."""
        if self._task is not None and not self._retiring:
            self._task.cancel()
        if self._retiring:
            done, _ = await asyncio.wait(self._retiring, timeout=timeout_s)
            return all(not task.cancelled() and task.result() for task in done)
        return True

    async def stop(self) -> None:
        """End whatever is under way."""
        tasks = {*self._retiring, *([] if self._task is None else [self._task])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(
        self, settings: Settings, bound: float | None, before: "asyncio.Task[None] | None"
    ) -> None:
        """One reload; it begins when the one `before` has given its old model's memory back."""
        if before is not None:
            await asyncio.wait({before})
        old = self._present()
        started = self._clock()
        bound = settings.canary_agreement if bound is None else bound
        engine: Engine | None = None
        try:
            load = partial(load_parts, settings, local_only=True)
            parts = await _in_thread(load, niceness=NICENESS)
            engine = await _in_thread(lambda: Engine(*parts[:2], settings, bank_path=parts[2]))
            core = await self._wire(engine, settings, old, self._stage)
            self._stage("trying")
            verdict = await try_beside(old, engine, bound)
            # Nothing awaits from here to the swap, which is the last thing that may fail.
            take_over(old.controller.status(), old.controller.table.degrees[-1], core.controller)
            core.scheduler.take_over(old.scheduler)
            self._swap(Candidate(engine, settings, core))
        except BaseException as error:
            if engine is not None:
                engine.close()
                engine.release()
            self._fail(error, settings, self._clock() - started)
            if isinstance(error, Exception):
                return
            raise
        self._settings = settings
        self._done(verdict, self._clock() - started)
        await self._retire(old, settings)

    async def _retire(self, old: Core, settings: Settings) -> None:
        """Let the old model finish what it has, then give its memory back."""
        drain = asyncio.create_task(old.batcher.drain(settings.drain_timeout_s))
        self._retiring.add(drain)
        drain.add_done_callback(self._retiring.discard)
        try:
            await asyncio.wait({drain}, timeout=max(SIDE_BY_SIDE_AFTER_S, settings.slo_s))
        finally:
            old.over.set()
        if not await drain:
            logger.warning("the old model did not finish in drain_timeout_s; its rest was given up")
        name = old.engine.loaded.name
        old.engine.close()
        await _in_thread(old.engine.release)
        logger.info("the model before is gone: model=%s", name)

    def _stage(self, stage: ReloadStage) -> None:
        self._note(state=stage)

    def _done(self, verdict: Verdict, seconds: float) -> None:
        self._note(
            state="done",
            seconds=round(seconds, 3),
            images=verdict.images,
            recent=verdict.recent,
            agreement=verdict.agreement,
        )
        assert self.status is not None
        told = fields(**self.status.model_dump(exclude={"state", "detail"}, mode="json"))
        logger.info("reload done", extra=told)
        self._ended.set()
        self._on_end("done")

    def _fail(self, error: BaseException, settings: Settings, seconds: float) -> None:
        agreement = error.agreement if isinstance(error, ReloadFailed) else None
        detail = _detail(error)
        # What was expected to be possible is told in one line, a bug with its traceback.
        bug = not isinstance(
            error, ServeError | SettingsError | TocomError | OSError | asyncio.CancelledError
        )
        logger.error(
            "reload failed, the model stays as it is: %s",
            detail,
            exc_info=error if bug else None,
            extra=fields(model=settings.model, bank=settings.bank, agreement=agreement),
        )
        self._note(
            state="failed",
            seconds=round(seconds, 3),
            agreement=agreement,
            detail=shown(settings, detail),
        )
        self._ended.set()
        self._on_end("failed" if agreement is None else "disagreed")

    def _note(self, **changes: object) -> None:
        assert self.status is not None
        self.status = self.status.model_copy(update=changes)


async def try_beside(old: Core, engine: Engine, bound: float) -> Verdict:
    """Run the canary batch with what the present model was sent last.

    Raises:
        ReloadFailed: see `canary.try_out`.
    """
    sizes = _size(old.engine), _size(engine)
    return await try_out(old.engine, engine, tuple(old.recent), sizes, bound)


def _size(engine: Engine) -> tuple[int, int]:
    _, height, width = engine.loaded.input_size
    return height, width


def _detail(error: BaseException) -> str:
    """What an operator is told; a bug's own words are for the log."""
    if isinstance(error, ServeError):
        return error.detail
    if isinstance(error, asyncio.CancelledError):
        return "The server shut down meanwhile."
    if isinstance(error, SettingsError | TocomError | OSError | RuntimeError):
        return str(error)
    return "The server made a mistake; see its log."


async def _in_thread(work: Callable[[], T], niceness: int = 0) -> T:
    """Run on a thread of its own, which can be as nice as it likes and ends with the work.

    As a daemon it cannot hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        if niceness:
            with suppress(OSError, AttributeError):  # per thread on Linux; elsewhere there is none
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await future
