"""Stand-ins for what batching and control depend on, time and a model, and a bench for them."""

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from server.batcher import Batcher, ItemResult, Submission
from server.levels import LevelTable
from server.stats import BatchOutcome, BatchStats, RequestStats
from tocom_core.operating_point import OperatingPoint

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: where the loop would sleep, its time jumps."""

    def __init__(self, loop: "VirtualTimeLoop") -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: all tasks wait and no timer is set")
        if not ready and timeout:
            self._loop.virtual_now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock only moves when everybody waits; sleeping takes no time."""

    def __init__(self) -> None:
        self.virtual_now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time."""
        return self.virtual_now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def loop_time() -> float:
    """Return the virtual time; the clock to pass to what is under test."""
    return asyncio.get_running_loop().time()


class ManualClock:
    """A clock that a test moves by hand."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time as set."""
        return self.now


class FakeModel:
    """Takes `overhead_s + size / images_per_s(r)` for a batch and echoes its payloads."""

    def __init__(
        self,
        images_per_s: Callable[[int], float] = lambda r: 100.0,
        *,
        overhead_s: float = 0.0,
        merge_s: float = 0.0,
        fault: Callable[[Sequence[Any], int], Exception | None] = lambda payloads, r: None,
    ) -> None:
        self.images_per_s = images_per_s
        self.overhead_s = overhead_s
        self.merge_s = merge_s
        self.fault = fault
        self.batches: list[tuple[float, int, list[Any]]] = []
        self.running = 0

    async def run(self, payloads: Sequence[Any], r: int) -> BatchOutcome:
        """Compute a batch; one at a time."""
        assert self.running == 0, "two batches at once"
        self.running += 1
        self.batches.append((loop_time(), r, list(payloads)))
        compute_s = self.overhead_s + len(payloads) / self.images_per_s(r)
        try:
            await asyncio.sleep(self.merge_s + compute_s)
            error = self.fault(payloads, r)
            if error is not None:
                raise error
        finally:
            self.running -= 1
        return BatchOutcome(list(payloads), r, self.merge_s, compute_s)

    @property
    def served(self) -> list[Any]:
        """All payloads that reached the model, in order."""
        return [payload for _, _, batch in self.batches for payload in batch]


def linear_speedup(at_zero: float, gain: float, highest: int) -> Callable[[int], float]:
    """Return images/s by degree: `at_zero` at r=0, `gain` times that at the highest degree."""
    return lambda r: at_zero * (1 + (gain - 1) * r / highest)


def points(
    images_per_s: Callable[[int], float] | None,
    degrees: Sequence[int] = tuple(range(17)),
    *,
    ratio: Callable[[int], float] = lambda r: 1 + r / 16,
    accuracy: Callable[[int], float | None] = lambda r: None,
) -> tuple[OperatingPoint, ...]:
    """Return one level per degree, measured if `images_per_s` is given."""
    return tuple(
        OperatingPoint(
            r,
            ratio(r) if images_per_s is None else images_per_s(r) / images_per_s(degrees[0]),
            None if images_per_s is None else images_per_s(r),
            accuracy(r),
            images_per_s is not None,
        )
        for r in degrees
    )


def table(images_per_s: Callable[[int], float] | None, **options: Any) -> LevelTable:
    """Return a level table over 17 degrees."""
    return LevelTable(points(images_per_s), **options)


class Bench:
    """A started batcher with its model and everything its observers were told."""

    def __init__(self, model: FakeModel | None = None, r: int = 0, **options: Any) -> None:
        self.model = model or FakeModel()
        self.r = r
        self.batches: list[BatchStats] = []
        self.requests: list[RequestStats] = []
        defaults: dict[str, Any] = {
            "max_batch_size": 8,
            "max_queue_delay_s": 0.002,
            "queue_size": 64,
            "on_batch": [self.batches.append],
            "on_request": [self.requests.append],
        }
        self.batcher = Batcher(
            options.pop("run_batch", self.model.run),
            options.pop("choose_r", lambda load: self.r),
            loop_time,
            **(defaults | options),
        )
        self.batcher.start()

    def submit(self, payload: Any = "image", **wishes: Any) -> asyncio.Future[ItemResult]:
        """Submit one image."""
        return self.batcher.submit_all([Submission(payload, **wishes)])[0]

    def submit_many(self, count: int, **wishes: Any) -> list[asyncio.Future[ItemResult]]:
        """Submit several images of one request."""
        return self.batcher.submit_all([Submission(i, **wishes) for i in range(count)])

    @property
    def outcomes(self) -> Counter[str]:
        """How many images ended in which way."""
        return Counter(stats.outcome for stats in self.requests)
