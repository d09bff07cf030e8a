"""The model and its one inference thread.

All tensor work happens on a single thread: weights are merged between two forward passes and never
during one, so a batch cannot mix degrees.  Callers hand over decoded images and a degree and await
the outcome; when a batch does not fit into memory it is halved, and what cannot be computed fails
its own batch only.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.clock import Clock, monotonic
from server.degrees import expected_accuracy, highest_degree, most_telling_first, operating_points
from server.errors import ForwardFailed, SettingsError
from server.settings import Settings
from server.stats import BatchOutcome
from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.merger import WeightMerger
from tocom_core.models import LoadedModel, find_bank, load_model, pick_device
from tocom_core.operating_point import OperatingPoint

logger = logging.getLogger(__name__)

Probabilities = np.ndarray[tuple[int], np.dtype[np.float32]]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FAILURES_UNTIL_BROKEN = 3
_CPU_WARM_UP_BATCH = 8
_MOST_RUNS = 4
_ENOUGH_TIME_S = 0.2


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up learned.

    Attributes:
        images_per_s: degree to throughput, of the degrees that were run.
        seconds: how long it took.
    """

    images_per_s: dict[int, float]
    seconds: float


class Engine:
    """Runs batches of one model at any of its degrees.

    Args:
        loaded: the model; its weights are moved to the device and from then on belong to the
            engine.
        bank: the compensator; None merges tokens without compensation.
        settings: device, dtype, threads, method, batch size.
        clock: measures merging and computing.

    Raises:
        SettingsError: the settings do not fit this machine or model.
        TocomError: the bank does not fit, or the method does not cover the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        bank: Bank | None,
        settings: Settings,
        clock: Clock = monotonic,
    ) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.loaded = loaded
        self.bank = bank
        self.device = pick_device(settings.device)
        self.dtype = _DTYPES[settings.dtype]
        self.r_source = loaded.r_source
        self.model = _compressed(loaded, bank, settings).to(self.device, self.dtype)
        self._merger = self._new_merger(settings.scaling)
        self.max_r = highest_degree(self.model, bank, self.r_source, settings.max_r)
        self._max_batch_size = settings.max_batch_size
        self._clock = clock
        self._failures = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

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
        return self._scaling

    def levels(self, images_per_s: dict[int, float] | None = None) -> tuple[OperatingPoint, ...]:
        """All degrees with what they win and cost.

        Args:
            images_per_s: measured throughput of some degrees; the others are derived from the
                nearest measured one by counting multiply-adds.
        """
        return operating_points(
            self.model,
            self.max_r,
            images_per_s or {},
            expected_accuracy(self.loaded.evaluation, with_bank=self.bank is not None),
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
        return await loop.run_in_executor(self._thread, self.run_blocking, images, r)

    def run_blocking(self, images: Sequence[Tensor], r: int) -> BatchOutcome:
        """``run``, on the calling thread: for a caller that is alone with the engine."""
        try:
            outcome = self._run(images, r)
        except Exception as error:
            self._failures += 1
            logger.exception(
                "batch failed: images=%d r=%d in_a_row=%d", len(images), r, self._failures
            )
            raise ForwardFailed(_failure_detail(error)) from error
        self._failures = 0
        return outcome

    async def warm_up(self, budget_s: float = 10.0) -> WarmUp:
        """Run the degrees once and measure them; within the budget, the most telling ones first."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._warm_up, budget_s)

    def close(self) -> None:
        """End the inference thread; a batch that is running is not waited for."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, images: Sequence[Tensor], r: int) -> BatchOutcome:
        started = self._clock()
        self._set_degree(r)
        merged = self._clock()
        outputs = self._classify(torch.stack(list(images)), r)
        done = self._clock()
        return BatchOutcome(
            outputs=[_checked(row) for row in outputs.numpy()],
            r=r,
            merge_s=merged - started,
            compute_s=done - merged,
        )

    def _set_degree(self, r: int) -> None:
        if self._merger is not None and self._merger.r_target != r:
            self._merger.set_target(r)

    def _classify(self, images: Tensor, r: int) -> Tensor:
        """uint8 ``(B, 3, H, W)`` to ``(B, C)`` probabilities, in halves when memory ends."""
        try:
            return self._forward(images, r)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error) or len(images) == 1:
                raise
        # Outside of the handler: the traceback keeps the failed pass's tensors alive.
        logger.warning("out of memory with %d images at r=%d; trying halves", len(images), r)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(images) // 2
        return torch.cat([self._classify(part, r) for part in (images[:half], images[half:])])

    def _forward(self, images: Tensor, r: int) -> Tensor:
        with torch.inference_mode():
            pixels = self.loaded.normalize(images.to(self.device), self.dtype)
            logits: Tensor = self.model(pixels, r)
            return logits.float().softmax(dim=-1).cpu()

    def _warm_up(self, budget_s: float) -> WarmUp:
        started = self._clock()
        size = self._max_batch_size
        if self.device.type == "cpu":
            size = min(size, _CPU_WARM_UP_BATCH)
        generator = torch.Generator().manual_seed(0)
        shape = (size, *self.loaded.input_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self._check_classes(self._classify(images[:1], self.r_source))
        measured: dict[int, float] = {}
        for r in most_telling_first(self.max_r):
            if self._closed or (measured and self._clock() - started > budget_s):
                logger.info("warm-up stopped after %d of %d degrees", len(measured), self.max_r + 1)
                break
            measured[r] = size / self._best_time(images, r)
        return WarmUp(measured, self._clock() - started)

    def _best_time(self, images: Tensor, r: int) -> float:
        """Seconds of the fastest of a few runs, at least two: the first one is slow."""
        self._set_degree(r)
        times: list[float] = []
        while len(times) < 2 or (len(times) < _MOST_RUNS and sum(times) < _ENOUGH_TIME_S):
            started = self._clock()
            self._classify(images, r)
            times.append(self._clock() - started)
        return min(times)

    def _check_classes(self, outputs: Tensor) -> None:
        if outputs.shape[1] != len(self.labels):
            raise SettingsError(
                f"the model gives {outputs.shape[1]} scores but has {len(self.labels)} labels; "
                "serve a model with a classification head and one label per class"
            )

    def _new_merger(self, scaling: float | None) -> WeightMerger | None:
        if self.bank is None:
            logger.info("no bank: tokens are %sd without compensation", self.model.method)
            self._scaling = None
            return None
        self._scaling = self.bank.scaling if scaling is None else scaling
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
    return Engine(loaded, None if path is None else Bank.load(path), settings)


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


def _checked(row: Probabilities) -> Probabilities | ForwardFailed:
    """An image's probabilities, or its failure if they are no numbers."""
    if np.isfinite(row).all():
        return row
    return ForwardFailed("The model gave no finite scores for this image; try another dtype")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(
        error
    )


def _failure_detail(error: Exception) -> str:
    """What a client may know; the log has the rest."""
    if _is_out_of_memory(error):
        return "The server ran out of memory for this image; try again later"
    return "The model failed on this batch; try again, and tell the operator if it persists"
