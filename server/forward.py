"""One batch through the model: shared out to lanes, halved where memory ends."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from server.lanes import Lanes
from tocom_core.compressed_vit import CompressedViT

logger = logging.getLogger(__name__)

Normalize = Callable[[Tensor, torch.dtype], Tensor]


class Forward:
    """Decoded images to class probabilities.

    Args:
        model: in eval mode, on its device, in its dtype; nobody changes it during a call.
        normalize: uint8 ``(B, 3, H, W)`` on the device to the model's input in a dtype.
        device: where the model is.
        dtype: of its weights.
        lanes: what parts of a batch run on.
    """

    def __init__(
        self,
        model: CompressedViT,
        normalize: Normalize,
        device: torch.device,
        dtype: torch.dtype,
        lanes: Lanes,
    ) -> None:
        self._model = model
        self._normalize = normalize
        self._device = device
        self._dtype = dtype
        self._lanes = lanes

    def classify(self, images: Tensor, r: int) -> Tensor:
        """Run one batch, in halves when memory ends.

        Args:
            images: uint8 ``(B, 3, H, W)`` on the CPU.
            r: tokens to merge per layer.

        Returns:
            float32 ``(B, C)`` on the CPU, each row summing to 1.

        Raises:
            Exception: whatever the model raises; out of memory only where one image is too much.
        """
        try:
            return self._lanes.run(partial(self._part, r=r), images)
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

    def _part(self, images: Tensor, r: int) -> Tensor:
        with torch.inference_mode():  # here, as it holds for one thread only
            pixels = self._normalize(images.to(self._device), self._dtype)
            logits: Tensor = self._model(pixels, r)
            return logits.float().softmax(dim=-1).cpu()


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer images might have done."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(
        error
    )
