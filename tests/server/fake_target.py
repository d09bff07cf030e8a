"""A server under test that exists only in virtual time, behind the client's own interface."""

import asyncio
import math
from dataclasses import dataclass
from typing import cast

from server.open_loop import Answer, Client, Served
from tocom_client import AsyncClient, CompressionStatus, Level, ModelInfo


@dataclass
class Machine:
    """How the made-up server behaves.

    A batch of n images at degree r takes `image_s · (1 + n) / 2 · (1 − r/32)`; at most
    `max_batch` images go together; more than `queue` that wait are refused; each request spends
    `before_s` on its way in. So many degrees per second get measured; where the controller
    `stays`, it does not come down when it gets the dial back. In every `slow_every_s` it takes
    twice as long for `slow_for_s`.
    """

    image_s: float = 0.03
    max_batch: int = 4
    queue: int = 1000
    before_s: float = 0.004
    levels: tuple[int, ...] = tuple(range(17))
    measured_per_s: float = math.inf
    stays: bool = False
    alive: bool = True
    slow_every_s: float = 1.0
    slow_for_s: float = 0.0

    def batch_s(self, r: int, size: int) -> float:
        """Return how long a batch takes."""
        return self.image_s * (1 + size) / 2 * (1 - r / 32)


class FakeTarget(Client):
    """Answers what a server would, after the time it would take.

    Args:
        machine: how it behaves.
        busy_r: where its controller is when it gets the dial back; it takes 5 s to come down.
    """

    def __init__(self, machine: Machine, busy_r: int = 0) -> None:
        self.machine = machine
        self.mode, self.r = "auto", 0
        self.busy_r, self.handed_back_s = busy_r, -math.inf
        self.control = cast(AsyncClient, FakeControl(self))
        self._waiting: list[tuple[float, asyncio.Future[Served]]] = []
        self._computing: asyncio.Task[None] | None = None
        self._batches = 0
        self._photos = (b"jpeg",)
        self._sent = 0
        self.deadline_ms: float | None = None

    async def classify(self, due_s: float | None = None) -> Answer:
        """Wait for a batch like anybody."""
        loop = asyncio.get_running_loop()
        sent_s, photo = loop.time(), self._sent
        self._sent += 1
        due_s = sent_s if due_s is None else due_s
        if not self.machine.alive:
            return Answer(photo, due_s, sent_s, sent_s, 0, error="ConnectionRefusedError: gone")
        await asyncio.sleep(self.machine.before_s)
        if len(self._waiting) >= self.machine.queue:
            return Answer(photo, due_s, sent_s, loop.time(), 429, retry_after_s=1)
        result: asyncio.Future[Served] = loop.create_future()
        self._waiting.append((loop.time(), result))
        if self._computing is None:
            self._computing = asyncio.create_task(self._compute())
        image = await result
        return Answer(photo, due_s, sent_s, loop.time(), 200, (image,))

    async def round_trip_s(self) -> float:
        """Take two milliseconds."""
        return 0.002

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._waiting[: self.machine.max_batch]
            del self._waiting[: self.machine.max_batch]
            self._batches += 1
            started_s, r = loop.time(), self.r
            # A tenth of a microsecond tells batches apart, as it does on a real server.
            slow = started_s % self.machine.slow_every_s < self.machine.slow_for_s
            took_s = (1 + slow) * self.machine.batch_s(r, len(batch)) + 1e-7 * self._batches
            await asyncio.sleep(took_s)
            for joined_s, result in batch:
                queue_ms = 1000 * (started_s - joined_s)
                result.set_result(Served(r, len(batch), queue_ms, 1000 * took_s, 0, 0.9))
        self._computing = None


class FakeControl:
    """What an operator can do with that server; stands in for the client's `control`."""

    def __init__(self, target: FakeTarget) -> None:
        self._target = target

    async def pin(self, r: int) -> CompressionStatus:
        """Hold a degree."""
        return await self._turn("pinned", r)

    async def auto(self) -> CompressionStatus:
        """Hand it back."""
        return await self._turn("auto", self._target.busy_r)

    async def shadow(self) -> CompressionStatus:
        """Watch the policy."""
        return await self._turn("shadow", self._target.busy_r)

    async def _turn(self, mode: str, r: int) -> CompressionStatus:
        target = self._target
        target.mode, target.r = mode, r
        now = asyncio.get_running_loop().time()
        target.handed_back_s = math.inf if mode == "pinned" else now
        return await self.compression()

    async def compression(self) -> CompressionStatus:
        """The dial; the degree comes down five seconds after it was handed back."""
        target, machine = self._target, self._target.machine
        now = asyncio.get_running_loop().time()
        if target.mode != "pinned" and not machine.stays and now >= target.handed_back_s + 5:
            target.r = 0
        levels = tuple(
            Level(
                r,
                relative_throughput=1 / (1 - r / 32),
                images_per_s=1 / machine.batch_s(r, 1),
                batch_size=1,
                measured=number < machine.measured_per_s * now,
                pays=True,
                allowed=True,
                expected_accuracy=None if r % 2 else 0.9 - r / 100,
            )
            for number, r in enumerate(machine.levels)
        )
        return CompressionStatus(target.mode, target.r, 0, 0, machine.levels[-1], levels)

    async def model(self) -> ModelInfo:
        """What is served."""
        return ModelInfo(
            *("name", "architecture", "digest"),
            labels=("a", "b"),
            input_size=(3, 32, 32),
            transform={},
            method="merge",
            prop_attn=True,
            r_source=0,
            max_r=self._target.machine.levels[-1],
            bank=None,
            device="device",
            dtype="dtype",
            backend="eager",
            lanes=2,
        )
