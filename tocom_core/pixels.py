"""uint8 pixels to the model's input, where the model is, in one kernel.

One byte per channel crosses the bus instead of two or four. ``x · 1/(255·std) − mean/std`` is
computed in float32 and rounded once, written in the order in which the input lies: an image that
lies as the decoder made it, channels last, stays so, which is what a GPU's convolution reads best.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalise:
    """The scale and the offset of each channel, kept on the device.

    Args:
        mean: of each channel, of values in ``[0, 1]``.
        std: likewise.
        device: where the images will be.
        dtype: of the model.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        means, stds = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
        self._scale = (1 / (255 * stds)).float().to(device)
        self._offset = (-means / stds).float().to(device)
        self._dtype = dtype

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``(B, C, H, W)`` to the model's dtype, in the same memory format."""
        pixels = torch.empty_like(images, dtype=self._dtype)
        return torch.addcmul(self._offset, images, self._scale, out=pixels)
