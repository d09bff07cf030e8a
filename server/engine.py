"""The model and its inference threads.

Each batch has a thread that sees it through. On a CPU a batch is shared out to lanes, and the next
one may begin as soon as one lane is free (`room`), hence as many such threads as lanes; elsewhere
there is one. The weights change between two forward passes and never during one (`gate`), so a
batch cannot mix degrees.  Callers hand over decoded images and a degree and await the outcome; when
a batch does not fit into memory it is halved, and what cannot be computed fails its own batch only.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from server.backends import choose_backend
from server.clock import Clock, monotonic
from server.degrees import (
    device_identity,
    highest_degree,
    model_identity,
    relative_work,
    table_accuracies,
)
from server.errors import ForwardFailed, SettingsError
from server.forward import Forward, checked, failure_detail
from server.gate import DegreeGate
from server.lanes import Lanes, choose_lanes, use_threads
from server.room import Room
from server.settings import Settings
from server.stats import BatchOutcome
from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.latency_profile import LatencyProfile, Measurement
from tocom_core.merger import WeightMerger
from tocom_core.models import LoadedModel, find_bank, load_model, pick_device

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FAILURES_UNTIL_BROKEN = 3
_WARM_UP_BATCH = 8
_WARM_UP_RUNS = 2


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up learned.

    Attributes:
        measurements: of two batches, as different as can be; none where they were known before.
        seconds: how long it took.
    """

    measurements: tuple[Measurement, ...]
    seconds: float


class Engine:
    """Runs batches of one model at any of its degrees.

    Args:
        loaded: the model; its weights are moved to the device and from then on belong to the
            engine.
        bank: the compensator; None merges tokens without compensation.
        settings: device, dtype, threads, lanes, method.
        clock: measures merging and computing.
        bank_path: where the bank lies, if it comes from a file.

    Raises:
        SettingsError: the settings do not fit this machine or model.
        TocomError: the bank does not fit, or the method does not cover the model.

    Attributes:
        max_r: the highest degree.
        backend: what computes batches, by the name that the setting has for it.
        work: degree to its multiply-adds relative to those of r=0, for all degrees.
        device_identity: the device and what else decides how fast the model runs on it.
        model_identity: the model and what else decides how accurate it is.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        bank: Bank | None,
        settings: Settings,
        clock: Clock = monotonic,
        *,
        bank_path: Path | None = None,
    ) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        threads = torch.get_num_threads()
        self.loaded = loaded
        self.bank = bank
        self.bank_path = bank_path
        self.device = pick_device(settings.device)
        self.dtype = _DTYPES[settings.dtype]
        self.r_source = loaded.r_source
        lanes = Lanes(choose_lanes(settings.lanes, threads, self.device.type), threads)
        model = _compressed(loaded, bank, settings)
        self.model_identity = model_identity(loaded, bank, model, settings.scaling)
        self.model = model.to(self.device, self.dtype)
        self.max_r = highest_degree(model, bank, self.r_source, settings.max_r)
        backend = choose_backend(settings.backend, self.model, lanes, threads, self.max_r)
        self.backend = backend.name
        self.device_identity = device_identity(
            self.device, settings.dtype, threads, lanes.count, backend.name
        )
        self.work = relative_work(model, self.max_r)
        self._merger = self._new_merger(settings.scaling)
        self._gate = DegreeGate(self._switch, self.r_source, clock)
        self._max_batch_size = settings.max_batch_size
        self._clock = clock
        self._failures = 0
        self._samples: list[Tensor] = []
        self._forward = Forward(backend, loaded.normalize, self.device, self.dtype, lanes)
        self._lanes = lanes
        self._room = Room(lanes.count)
        self._threads = ThreadPoolExecutor(
            lanes.count,
            thread_name_prefix="inference",
            initializer=use_threads,
            initargs=(threads,),
        )

    @property
    def healthy(self) -> bool:
        """False after several failed batches in a row, until one succeeds."""
        return self._failures < _FAILURES_UNTIL_BROKEN

    @property
    def labels(self) -> tuple[str, ...]:
        """One name per class."""
        return self.loaded.labels

    @property
    def scaling(self) -> float | None:
        """The factor on the bank's deltas; None without a bank."""
        factor: float | None = self.model_identity["scaling"]
        return factor

    def own_profile(self, measurements: Sequence[Measurement]) -> LatencyProfile:
        """What is known without a stored profile: measurements, and what the model's file tells.

        Accuracies are those of the checkpoint's own evaluation table, for the way it is served.

        Raises:
            ProfileError: too few measurements.
        """
        known = table_accuracies(self.loaded.evaluation, with_bank=self.bank is not None)
        return LatencyProfile(
            device=self.device_identity,
            model=self.model_identity,
            work=self.work,
            measurements=measurements,
            accuracies=[accuracy for accuracy in known if accuracy.r in self.work],
            max_batch_size=self._max_batch_size,
        )

    async def run(self, images: Sequence[Tensor], r: int) -> BatchOutcome:
        """Classify a batch.

        Args:
            images: uint8, each ``(3, H, W)``.
            r: the degree for all of them.

        Returns:
            One ``(C,)`` float32 array of probabilities per image, or the ``ForwardFailed`` of an
            image for which the model gave no finite answer.

        Raises:
            ForwardFailed: the batch could not be computed; the engine goes on.
        """
        loop = asyncio.get_running_loop()
        alone = self._room.empty
        whole = self._lanes.keeps_whole(len(images)) and (alone or self._lanes.count == 1)
        with self._room.claim(self._lanes.count if whole else len(images)) as claim:
            on_part = partial(claim.give_back_from_thread, loop)
            run = partial(self.run_blocking, images, r, whole=whole, on_part=on_part)
            outcome = await loop.run_in_executor(self._threads, run)
        return replace(outcome, partial=not whole and len(images) < self._lanes.count)

    async def room(self) -> None:
        """Return once another batch would find a lane that has nothing to do."""
        await self._room.wait()

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
            outcome = self._run(images, r, whole, on_part)
        except Exception as error:
            self._failures += 1
            logger.exception(
                "batch failed: images=%d r=%d in_a_row=%d", len(images), r, self._failures
            )
            raise ForwardFailed(failure_detail(error)) from error
        self._failures = 0
        return outcome

    async def measure(self, r: int, batch: int) -> float:
        """Seconds that computing a batch of random images takes; merging weights is not counted.

        Raises:
            ForwardFailed: it could not be computed; the engine goes on.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.measure_blocking, r, batch)

    def measure_blocking(self, r: int, batch: int) -> float:
        """``measure``, on the calling thread: for a caller that is alone with the engine."""
        return self.run_blocking(self._random_images(batch), r).compute_s

    async def warm_up(self, *, measured: bool = False) -> WarmUp:
        """Run the model for the first time: check that it can be served, and measure two batches.

        Two are enough to begin with, as far apart as can be: one image without compression, and
        several at the highest degree.  All else is measured while no request waits.

        Args:
            measured: this device's latencies are known; nothing is measured then.

        Raises:
            SettingsError: the model's scores do not fit its labels.
            Exception: whatever the model raises if it cannot be run.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._warm_up, measured)

    def close(self) -> None:
        """End all threads; a batch that is running is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._forward.close()

    def _run(
        self,
        images: Sequence[Tensor],
        r: int,
        whole: bool | None = None,
        on_part: Callable[[], None] | None = None,
    ) -> BatchOutcome:
        batch = torch.stack(list(images))
        with self._gate.at(r) as merge_s:
            started = self._clock()
            outputs = self._forward.classify(batch, r, whole=whole, on_part=on_part)
            compute_s = self._clock() - started
        return BatchOutcome(
            outputs=[checked(row) for row in outputs.numpy()],
            r=r,
            merge_s=merge_s,
            compute_s=compute_s,
        )

    def _switch(self, r: int) -> None:
        """Make the live weights those of a degree; without a bank all have the same."""
        if self._merger is not None:
            self._merger.set_target(r)

    def _warm_up(self, measured: bool) -> WarmUp:
        started = self._clock()
        one = self._random_images(1)
        self._check_classes(self._forward.classify(torch.stack(one), self.r_source))
        if measured:
            self._run(one, self.max_r)
            return WarmUp((), self._clock() - started)
        cells = {(0, 1), (self.max_r, min(self._max_batch_size, _WARM_UP_BATCH))}
        first = tuple(self._first_measurement(*cell) for cell in sorted(cells))
        return WarmUp(first, self._clock() - started)

    def _first_measurement(self, r: int, batch: int) -> Measurement:
        """The faster of two runs: the first one of a shape is slow."""
        images = self._random_images(batch)
        seconds = min(self._run(images, r).compute_s for _ in range(_WARM_UP_RUNS))
        return Measurement(r, batch, seconds, spread=0.0, runs=1)

    def _random_images(self, count: int) -> list[Tensor]:
        """As many images as asked for, made once and kept."""
        missing = count - len(self._samples)
        if missing > 0:
            shape = (missing, *self.loaded.input_size)
            generator = torch.Generator().manual_seed(0)
            self._samples += torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return self._samples[:count]

    def _check_classes(self, outputs: Tensor) -> None:
        if outputs.shape[1] != len(self.labels):
            raise SettingsError(
                f"the model gives {outputs.shape[1]} scores but has {len(self.labels)} labels; "
                "serve a model with a classification head and one label per class"
            )

    def _new_merger(self, scaling: float | None) -> WeightMerger | None:
        if self.bank is None:
            logger.info("no bank: tokens are %sd without compensation", self.model.method)
            return None
        return WeightMerger(
            self.model,
            self.bank,
            self.r_source,
            scaling,
            trained_from=self.loaded.trained_from,
        )


def load_engine(settings: Settings) -> Engine:
    """Load what the settings name: model, bank, device.

    Raises:
        TocomError: the model or the bank cannot be loaded or do not fit each other.
        SettingsError: the settings do not fit this machine or model.
    """
    loaded = load_model(
        settings.model,
        architecture=settings.architecture,
        labels=settings.labels,
        r_source=settings.r_source,
    )
    path = find_bank(settings.model, settings.bank, loaded)
    bank = None if path is None else Bank.load(path)
    return Engine(loaded, bank, settings, bank_path=path)


def _compressed(loaded: LoadedModel, bank: Bank | None, settings: Settings) -> CompressedViT:
    """Wrap the model as it and its bank were trained, unless the settings say otherwise."""
    method = settings.method
    if bank is not None and bank.method != method:
        if "method" in settings.model_fields_set:
            logger.warning("method=%s, but the bank was trained with %s", method, bank.method)
        else:
            method = bank.method
    prop_attn = loaded.choose_prop_attn(settings.prop_attn, bank)
    return CompressedViT(loaded.vit, method, prop_attn).eval()
