"""Stand-ins for what batching and control depend on, time and a model, and a bench for them."""

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from server.batcher import Batcher, ItemResult, Submission
from server.entries import Entry
from server.policy import Decision
from server.scheduler import Scheduler
from server.stats import BatchOutcome, BatchStats, LoadSnapshot, RequestStats
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

    def batch_s(self, r: int, size: int) -> float:
        """Return how long a batch takes."""
        return self.overhead_s + size / self.images_per_s(r)

    async def run(self, payloads: Sequence[Any], r: int) -> BatchOutcome:
        """Compute a batch; one at a time."""
        assert self.running == 0, "two batches at once"
        self.running += 1
        self.batches.append((loop_time(), r, list(payloads)))
        compute_s = self.batch_s(r, len(payloads))
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


def believed(
    batch_s: Callable[[int, int], float],
    degrees: Sequence[int] = tuple(range(17)),
    *,
    max_batch_size: int = 8,
    batch_size: int | None = None,
) -> tuple[OperatingPoint, ...]:
    """Return one level per degree from a duration by (degree, images)."""
    return tuple(
        OperatingPoint(
            r,
            tuple(batch_s(r, size) for size in range(1, max_batch_size + 1)),
            batch_size or max_batch_size,
            batch_s(degrees[0], 1) / batch_s(r, 1),
        )
        for r in degrees
    )


class FakeTable:
    """Levels that do not change."""

    def __init__(self, levels: Sequence[OperatingPoint], spread: float = 0.0) -> None:
        self._levels = tuple(levels)
        self.spread = spread
        self.devices = levels[0].devices

    def points(self) -> tuple[OperatingPoint, ...]:
        """Return all levels."""
        return self._levels


class FakeDial:
    """Gives the degree that it is told, and may choose among all levels."""

    def __init__(
        self,
        levels: Sequence[OperatingPoint],
        choose: Callable[[LoadSnapshot], int] = lambda load: 0,
        *,
        reachable: Sequence[int] | None = None,
        max_batch: int | None = None,
    ) -> None:
        self.table = FakeTable(levels)
        self.choose = choose
        self.reachable = reachable
        self.max_batch = max_batch

    def decide(self, load: LoadSnapshot) -> Decision:
        """Return the chosen degree."""
        return Decision(self.choose(load), "told", self.max_batch)

    def keeping(self) -> tuple[OperatingPoint, ...]:
        """Return those that pay: no floor is set."""
        levels = self.table.points()
        return tuple(level for level in levels if level.pays or level is levels[0])

    def levels(self) -> tuple[OperatingPoint, ...]:
        """Return the levels that may be chosen."""
        return tuple(
            level
            for level in self.table.points()
            if self.reachable is None or level.r in self.reachable
        )


class Bench:
    """A started batcher with its model and everything its observers were told.

    The scheduler believes `batch_s`, by default what the model really takes, and gives nothing up
    unless `shed_late` is set.
    """

    def __init__(
        self,
        model: FakeModel | None = None,
        r: int = 0,
        *,
        choose_r: Callable[[LoadSnapshot], int] | None = None,
        batch_s: Callable[[int, int], float] | None = None,
        max_batch_size: int = 8,
        queue_size: int = 64,
        slo_s: float = 1.0,
        shed_late: bool = False,
        **options: Any,
    ) -> None:
        self.model = model or FakeModel()
        self.r = r
        self.batches: list[BatchStats] = []
        self.requests: list[RequestStats] = []
        levels = believed(batch_s or self.model.batch_s, max_batch_size=max_batch_size)
        self.scheduler: Scheduler[Entry] = Scheduler(
            FakeDial(levels, choose_r or (lambda load: self.r)),
            max_batch_size=max_batch_size,
            queue_size=queue_size,
            slo_s=slo_s,
            shed_late=shed_late,
        )
        defaults: dict[str, Any] = {
            "max_queue_delay_s": 0.002,
            "on_batch": [self.batches.append],
            "on_request": [self.requests.append],
        }
        self.batcher = Batcher(
            options.pop("run_batch", self.model.run),
            self.scheduler,
            loop_time,
            max_batch_size=max_batch_size,
            queue_size=queue_size,
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
