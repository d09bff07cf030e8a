"""The threads that decode images, and the way to them and back.

`ThreadPoolExecutor` does the same with a second kind of future, two locks and a condition per job,
all of them on the event loop: three times the time of a queue and a callback.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, get_native_id
from typing import Any, TypeVar

T = TypeVar("T")

LAST_MOMENT_S = 0.1
"""More than an idle thread needs; one that meets the end of the interpreter alarms libraries."""


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[], Any]
    future: asyncio.Future[Any]


class Decoders:
    """A fixed number of threads, started with the first job.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self._count = threads
        self._threads: list[Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Run a job on one of the threads; cancelling the future drops it unless it has begun."""
        if self._closed:
            raise RuntimeError("the decoders have been closed")
        if not self._threads:
            self._start()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(job, future))
        return future

    def close(self) -> None:
        """End the threads; what waits is cancelled, and what has begun gets a moment only."""
        self._closed = True
        with suppress(Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.future.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(LAST_MOMENT_S)

    def _start(self) -> None:
        # As daemons they cannot hold up the end of the process.
        names = (f"decode_{index}" for index in range(self._count))
        self._threads = [Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        _show_name()
        while (job := self._jobs.get()) is not None:
            if not job.future.cancelled():
                _run(job)
            del job  # an idle thread must not keep an image


def _show_name() -> None:
    """Let `top -H` and benchmarks tell these threads from the model's; a courtesy of Linux."""
    with suppress(OSError):
        task = Path(f"/proc/self/task/{get_native_id()}/comm")
        task.write_text(current_thread().name)


def _run(job: _Job) -> None:
    """Run a job and hand its outcome to its event loop."""
    result: Any = None
    error: BaseException | None = None
    try:
        result = job.run()
    except BaseException as raised:  # whatever it is, somebody waits for it, and the thread goes on
        error = raised
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        job.future.get_loop().call_soon_threadsafe(_settle, job.future, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
