"""One batch through the model: shared out to lanes, halved where memory ends."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from server.backends import Backend
from server.errors import DeviceLost, ForwardFailed
from server.lanes import Lanes, OnPart

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = "DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"
_DEVICE_ERRORS = "CUDA error", "HIP error", "device-side assert", "CUDNN_STATUS_EXECUTION_FAILED"

Normalize = Callable[[Tensor, torch.dtype], Tensor]
Probabilities = np.ndarray[tuple[int], np.dtype[np.float32]]


class BatchForward(Protocol):
    """A batch's way through the model, in two steps. `Forward` and `DeviceForward` are such."""

    def staged(self, images: Sequence[Tensor]) -> AbstractContextManager[Any]:
        """Bring uint8 images ``(3, H, W)`` where they are needed, for ``classify`` in the block."""

    def classify(
        self,
        batch: Any,
        r: int,
        *,
        whole: bool | None = None,
        on_part: OnPart | None = None,
    ) -> Tensor:
        """See `Forward.classify`; ``batch`` is what ``staged`` gave."""

    def prepare(self, count: int, r: int) -> None:
        """Do now what the first such batch would otherwise have to wait for."""

    def close(self) -> None:
        """End all threads."""


class Forward:
    """Decoded images to class probabilities.

    Args:
        backend: runs the model; nobody changes its weights during a call.
        normalize: uint8 ``(B, 3, H, W)`` on the device to the model's input in a dtype.
        device: where the model is.
        dtype: of its weights.
        lanes: what parts of a batch run on.
    """

    def __init__(
        self,
        backend: Backend,
        normalize: Normalize,
        device: torch.device,
        dtype: torch.dtype,
        lanes: Lanes,
    ) -> None:
        self._backend = backend
        self._normalize = normalize
        self._device = device
        self._dtype = dtype
        self._lanes = lanes

    def staged(self, images: Sequence[Tensor]) -> AbstractContextManager[Tensor]:
        """Images ``(3, H, W)`` as one batch."""
        return nullcontext(torch.stack(list(images)))

    def prepare(self, count: int, r: int) -> None:
        """Nothing to prepare: all sizes and degrees run alike."""

    def classify(
        self,
        images: Tensor,
        r: int,
        *,
        whole: bool | None = None,
        on_part: OnPart | None = None,
    ) -> Tensor:
        """Run one batch, in halves when memory ends.

        Args:
            images: uint8 ``(B, 3, H, W)`` on the CPU.
            r: tokens to merge per layer.
            whole: whether no other batch runs beside it and it is not shared out; None: as `Lanes`
                would have it for a batch that is alone.
            on_part: called when a lane has done its part, on that thread.

        Returns:
            float32 ``(B, C)`` on the CPU, each row summing to 1.

        Raises:
            Exception: whatever the model raises; out of memory only where one image is too much.
        """
        try:
            if whole is None:
                whole = self._lanes.keeps_whole(len(images))
            job = partial(self._part, r=r, whole=whole)
            return self._lanes.run(job, images, whole=whole, on_part=on_part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(images) == 1:
                raise
        # Outside of the handler: the traceback keeps the failed pass's tensors alive.
        logger.warning("out of memory with %d images at r=%d; trying halves", len(images), r)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(images) // 2
        return torch.cat([self.classify(part, r) for part in (images[:half], images[half:])])

    def close(self) -> None:
        """End the lanes' threads; parts that are running are not waited for."""
        self._lanes.close()

    def _part(self, images: Tensor, r: int, whole: bool) -> Tensor:
        with torch.inference_mode():  # here, as it holds for one thread only
            pixels = self._normalize(images.to(self._device), self._dtype)
            logits = self._backend.logits(pixels, r, whole=whole)
            return logits.float().softmax(dim=-1).cpu()


def checked(row: Probabilities) -> Probabilities | ForwardFailed:
    """Return an image's probabilities, or its failure if they are no numbers."""
    if np.isfinite(row).all():
        return row
    return ForwardFailed("The model gave no finite scores for this image; try another dtype")


def failure_of(error: Exception) -> ForwardFailed:
    """Return what becomes of a batch that raised this."""
    return DeviceLost() if is_device_lost(error) else ForwardFailed(failure_detail(error))


def failure_detail(error: Exception) -> str:
    """Return what a client may know of a failed batch; the log has the rest."""
    if is_out_of_memory(error):
        return "The server ran out of memory for this image; try again later"
    return "The model failed on this batch; try again, and tell the operator if it persists"


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer images might have done."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _OUT_OF_MEMORY)


def is_device_lost(error: Exception) -> bool:
    """Whether the device will fail from now on.

    An error of its driver comes asynchronously and sticks to the process's context: what it says
    is not worth telling apart, except that memory alone was short.
    """
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    return any(sign in str(error) for sign in _DEVICE_ERRORS)
