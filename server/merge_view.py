"""Shows what merges in an image, as work for a quiet moment: it never runs beside a batch.

One image at a time is taken; it waits until the batcher has nothing else to do, and gives up soon
if that does not happen. So nobody who is served waits for more than one forward pass of one image.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.errors import Busy, Draining

if TYPE_CHECKING:
    from tocom_core.visualisation import MergeMap

PATIENCE_S = 3.0
RETRY_AFTER_S = 2.0


@dataclass(frozen=True)
class _Job:
    image: Any
    r: int
    begun: asyncio.Event
    answer: "asyncio.Future[MergeMap]"


class MergeView:
    """Idle work: one forward pass for one who asked.

    Args:
        run: the model: an image and a degree in, what merged out.
    """

    def __init__(self, run: Callable[[Any, int], Awaitable["MergeMap"]]) -> None:
        self._run = run
        self._closed = False
        self._job: _Job | None = None

    async def show(self, image: Any, r: int) -> "MergeMap":
        """Wait for a quiet moment and run the image.

        Raises:
            Busy: another image is being shown, or there was no quiet moment.
            Draining: the server is shutting down.
            ForwardFailed: the model could not do it.
        """
        if self._closed:
            raise Draining
        if self._job is not None:
            raise Busy("Another image is being looked at; try again.", retry_after_s=1)
        answer = asyncio.get_running_loop().create_future()
        job = self._job = _Job(image, r, asyncio.Event(), answer)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await job.begun.wait()
            return await job.answer
        except TimeoutError:
            raise Busy(
                "The server is busy classifying; try again when it has a quiet moment.",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        finally:
            self._job = None
            job.answer.cancel()

    async def step(self) -> bool:
        """Run the image that waits; False where none does."""
        job = self._job
        if job is None or job.begun.is_set():
            return False
        job.begun.set()
        try:
            merged = await self._run(job.image, job.r)
        except asyncio.CancelledError:
            _fail(job, Draining())
            raise
        except Exception as error:
            _fail(job, error)
        else:
            if not job.answer.done():
                job.answer.set_result(merged)
        return True

    def close(self) -> None:
        """Refuse whoever waits, and all that come; what has begun is finished."""
        self._closed = True
        if self._job is not None and not self._job.begun.is_set():
            _fail(self._job, Draining())
            self._job.begun.set()


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
