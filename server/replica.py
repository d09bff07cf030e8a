"""The model on one device, and its inference threads.

Each batch has a thread that sees it through. On a CPU a batch is shared out to lanes, and the next
one may begin as soon as one lane is free (`room`), hence as many such threads as lanes; on a GPU
the next one is staged while one computes (`device_forward`), hence two; elsewhere there is one.
The weights change between two forward passes and never during one (`gate`), so a batch cannot mix
degrees.  When a batch does not fit into memory it is halved, and what cannot be computed fails its
own batch only.
"""

import asyncio
import logging
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from torch import Tensor

from server.backends import choose_backend
from server.clock import Clock
from server.device_forward import forward_for, threads_in_flight
from server.devices import Place
from server.forward import checked, failure_of
from server.gate import DegreeGate
from server.lanes import Lanes, choose_lanes, use_threads
from server.room import Room
from server.settings import Settings
from server.stats import BatchOutcome
from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.merger import WeightMerger
from tocom_core.models import LoadedModel
from tocom_core.precision import use_precision
from tocom_core.visualisation import MergeMap, merge_map

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FAILURES_UNTIL_BROKEN = 3


class Replica:
    """Runs batches of one model at any of its degrees, on one device.

    Args:
        model: compressed, in eval mode; its weights are moved to the device and from then on belong
            to the replica.
        loaded: where it comes from.
        bank: the compensator; None merges tokens without compensation.
        settings: dtype, lanes.
        backend: what computes batches, as the setting calls it.
        place: where it runs, and with how many threads of the CPU.
        max_r: the highest degree.
        clock: measures merging and computing.
        number: among the devices.

    Raises:
        SettingsError: the settings do not fit this machine or model.
        TocomError: the bank does not fit.

    Attributes:
        backend: what computes batches, by the name that the setting has for it.
        room: which of its lanes are free.
    """

    def __init__(
        self,
        model: CompressedViT,
        loaded: LoadedModel,
        bank: Bank | None,
        settings: Settings,
        backend: str,
        place: Place,
        max_r: int,
        clock: Clock,
        *,
        number: int = 0,
    ) -> None:
        threads = place.threads
        self.device = place.device
        self.dtype = use_precision(settings.dtype, self.device).dtype
        self.threads = threads
        count = choose_lanes(settings.lanes, threads, self.device.type)
        self.lanes = Lanes(count, threads, clock)
        self.model = model.to(self.device, self.dtype)
        chosen = choose_backend(backend, self.model, self.lanes, threads, max_r)
        self.backend = chosen.name
        self.room = Room(self.lanes.count)
        self._merger = _merger(self.model, loaded, bank, settings)
        self._gate = DegreeGate(self._switch, loaded.r_source, clock)
        self._clock = clock
        self._number = number
        self._failures = 0
        self._normalize = loaded.normalize
        self._forward = forward_for(chosen, loaded, self.device, self.dtype, self.lanes, settings)
        self._threads = ThreadPoolExecutor(
            threads_in_flight(self.device, self.lanes),
            thread_name_prefix=f"inference-{number}",
            initializer=use_threads,
            initargs=(threads,),
        )

    @property
    def healthy(self) -> bool:
        """False after several failed batches in a row, until one succeeds."""
        return self._failures < _FAILURES_UNTIL_BROKEN

    async def run(self, images: Sequence[Tensor], r: int) -> BatchOutcome:
        """Classify a batch; see `Engine.run`."""
        loop = asyncio.get_running_loop()
        alone = self.room.empty
        whole = self.lanes.keeps_whole(len(images)) and (alone or self.lanes.count == 1)
        with self.room.claim(self.lanes.count if whole else len(images)) as claim:
            on_part = partial(claim.give_back_from_thread, loop)
            run = partial(self.run_blocking, images, r, whole=whole, on_part=on_part)
            outcome = await self.on_thread(run)
        return replace(outcome, partial=not whole and len(images) < self.lanes.count)

    def run_blocking(
        self,
        images: Sequence[Tensor],
        r: int,
        *,
        whole: bool | None = None,
        on_part: Callable[[], None] | None = None,
    ) -> BatchOutcome:
        """``run``, on the calling thread; ``whole`` and ``on_part`` as in `Forward.classify`."""
        try:
            outcome = self.compute(images, r, whole=whole, on_part=on_part)
        except Exception as error:
            self._failures += 1
            logger.exception(
                "batch failed: device=%s images=%d r=%d in_a_row=%d",
                self.device,
                len(images),
                r,
                self._failures,
            )
            raise failure_of(error) from error
        self._failures = 0
        return outcome

    def compute(
        self,
        images: Sequence[Tensor],
        r: int,
        *,
        whole: bool | None = None,
        on_part: Callable[[], None] | None = None,
    ) -> BatchOutcome:
        """Classify a batch on the calling thread, and let failures be what they are.

        Raises:
            Exception: whatever the model raises.
        """
        busy_s: list[float] = []

        def part_done(lane_s: float | None) -> None:
            if lane_s is not None:
                busy_s.append(lane_s)
            if on_part is not None:
                on_part()

        told = None if on_part is None else part_done

        with self._forward.staged(images) as batch, self._gate.at(r) as merge_s:
            started = self._clock()
            outputs = self._forward.classify(batch, r, whole=whole, on_part=told)
            compute_s = self._clock() - started
        return BatchOutcome(
            outputs=[checked(row) for row in outputs.numpy()],
            r=r,
            merge_s=merge_s,
            compute_s=compute_s,
            busy_s=statistics.fmean(busy_s) if busy_s else None,
            device=self._number,
        )

    def merge_map(self, image: Tensor, r: int) -> MergeMap:
        """What merges in one image, on the calling thread; see `Engine.merge_map`."""
        try:
            pixels = self._normalize(image[None].to(self.device), self.dtype)
            with self._gate.at(r):
                return merge_map(self.model, pixels, r)
        except Exception as error:
            logger.exception("finding what merges failed: r=%d", r)
            raise failure_of(error) from error

    def classify(self, images: Sequence[Tensor], r: int) -> Tensor:
        """Run one batch at the degree that the weights have, on the calling thread."""
        with self._forward.staged(images) as batch:
            return self._forward.classify(batch, r)

    def prepare(self, count: int, r: int) -> None:
        """Do now, on the calling thread, what the first such batch would have to wait for."""
        with self._gate.at(r):
            self._forward.prepare(count, r)

    async def on_thread(self, job: Callable[[], T]) -> T:
        """Do something on one of the inference threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    def close(self) -> None:
        """End all threads; a batch that is running is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._forward.close()

    def release(self) -> None:
        """Forget the model once all is idle; what refers to each other here would keep it."""
        for heavy in ("model", "_merger", "_gate", "_forward", "_normalize"):
            self.__dict__.pop(heavy, None)

    def _switch(self, r: int) -> None:
        """Make the live weights those of a degree; without a bank all have the same."""
        if self._merger is not None:
            self._merger.set_target(r)


def _merger(
    model: CompressedViT, loaded: LoadedModel, bank: Bank | None, settings: Settings
) -> WeightMerger | None:
    if bank is None:
        return None
    return WeightMerger(
        model,
        bank,
        loaded.r_source,
        settings.scaling,
        trained_from=loaded.trained_from,
        kept_bytes=settings.switch_cache_mb * 2**20,
    )
