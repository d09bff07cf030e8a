"""One batch through a CUDA device: staged beside the one before, halved where memory ends."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from server.backends import Backend, Captured
from server.clock import Clock, monotonic
from server.forward import BatchForward, Forward, is_out_of_memory
from server.head_start import HeadStart
from server.lanes import Lanes, OnPart
from server.settings import Settings
from tocom_core.cuda_graphs import CudaCapture
from tocom_core.models import LoadedModel
from tocom_core.pipeline import Pipeline
from tocom_core.pixels import Normalise
from tocom_core.staging import Slot

logger = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Threads that see batches through: one waits for the device, the other stages the next batch."""


class DeviceForward:
    """Decoded images to class probabilities, by way of pinned memory.

    Args:
        pipeline: of the device.
        head_start: when the next batch may be chosen.
        clock: in seconds.
    """

    def __init__(self, pipeline: Pipeline, head_start: HeadStart, clock: Clock = monotonic) -> None:
        self._pipeline = pipeline
        self._head_start = head_start
        self._clock = clock

    @contextmanager
    def staged(self, images: Sequence[Tensor]) -> Iterator[Slot]:
        """Send uint8 images ``(3, H, W)`` to the device; their slot is theirs inside the block."""
        started = self._clock()
        with self._pipeline.staged(images) as slot:
            self._head_start.staged(self._clock() - started)
            yield slot

    def classify(
        self,
        batch: Slot,
        r: int,
        *,
        whole: bool | None = None,
        on_part: OnPart | None = None,
    ) -> Tensor:
        """Run one batch, in halves when memory ends.

        Args:
            batch: staged.
            r: tokens to merge per layer; the live weights are those for it.
            whole: of no meaning here.
            on_part: called when the next batch may be chosen, if that is before this one's end.

        Returns:
            float32 ``(B, C)`` on the CPU, each row summing to 1.

        Raises:
            Exception: whatever the model or the device raises; out of memory only where one image
                is too much.
        """
        self._compute(batch, r, 0, batch.count, on_part)
        return batch.scores.clone()

    def prepare(self, count: int, r: int) -> None:
        """Capture the graph for such a batch now, where there are graphs."""
        self._pipeline.prepare(count, r)

    def close(self) -> None:
        """Nothing to end: the threads are the engine's."""

    def _compute(
        self, batch: Slot, r: int, start: int, stop: int, on_part: OnPart | None = None
    ) -> None:
        count = stop - start
        try:
            launched = self._pipeline.launch(batch, r, slice(start, stop))
            launched.begun.synchronize()
            began = self._clock()
            if on_part is not None and self._head_start.wait((r, count), launched.done.query):
                on_part(None)
            launched.done.synchronize()
            self._head_start.computed((r, count), self._clock() - began)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or count == 1:
                raise
        # Outside of the handler: the traceback keeps the failed pass's tensors alive.
        logger.warning("out of memory with %d images at r=%d; trying halves", count, r)
        self._pipeline.make_room(count)
        middle = start + count // 2
        self._compute(batch, r, start, middle)
        self._compute(batch, r, middle, stop)


def threads_in_flight(device: torch.device, lanes: Lanes) -> int:
    """How many batches are seen through at once, each by a thread."""
    return IN_FLIGHT if device.type == "cuda" else lanes.count


def forward_for(
    backend: Backend,
    loaded: LoadedModel,
    device: torch.device,
    dtype: torch.dtype,
    lanes: Lanes,
    settings: Settings,
) -> BatchForward:
    """What fits the device: a pipeline for CUDA, lanes for the rest.

    Args:
        backend: runs the model.
        loaded: the model, on the device.
        device: where it is.
        dtype: of its weights.
        lanes: what parts of a batch run on.
        settings: of the largest batch, and of how many CUDA graphs are kept.
    """
    if device.type != "cuda":
        return Forward(backend, loaded.normalize, device, dtype, lanes)
    pipeline = Pipeline(
        lambda pixels, r: backend.logits(pixels, r, whole=True),
        Normalise(loaded.mean, loaded.std, device, dtype),
        loaded.input_size,
        loaded.vit.num_classes or loaded.vit.num_features,
        device,
        capture=CudaCapture(device) if isinstance(backend, Captured) else None,
        largest_batch=settings.max_batch_size,
        most_graphs=settings.max_graphs,
    )
    return DeviceForward(pipeline, HeadStart())
