"""Resize and crop for the model's input, in a quarter of the time that Pillow takes.

timm's transform resizes with Pillow, which takes longer than decoding a photograph of the web's
usual size. PyTorch's resize of uint8 pixels computes the same filter with vector instructions
(AVX2, NEON), without the interpreter's lock. Its pixels are those of Pillow but for some 0.002
levels on average and two at most, which come from the rounding of the filter's weights. It uses one
thread, so that decoders do not get in each other's way.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

Transform = Callable[[Image.Image], Tensor]

_MODES = {InterpolationMode.BICUBIC: "bicubic", InterpolationMode.BILINEAR: "bilinear"}


class CentreOfResized:
    """Resize the short side, cut out the centre: what timm does for most models.

    Args:
        short_side: of the resized image, in pixels.
        crop: `(height, width)` of the result, neither larger than `short_side`.
        mode: `bicubic` or `bilinear`, of `torch.nn.functional.interpolate`.
    """

    def __init__(self, short_side: int, crop: tuple[int, int], mode: str) -> None:
        self.short_side = short_side
        self.crop = crop
        self.mode = mode

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image of any size into uint8 `(3, height, width)`."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
        height, width = self._resized(image.height, image.width)
        if (height, width) != (image.height, image.width):
            size = (height, width)
            pixels = interpolate(pixels, size, mode=self.mode, antialias=True)
        # As torchvision cuts: half a pixel goes to the even side.
        top, left = round((height - self.crop[0]) / 2), round((width - self.crop[1]) / 2)
        cut = pixels[0, :, top : top + self.crop[0], left : left + self.crop[1]]
        return cut.contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """As torchvision rounds: the long side down."""
        short, long = sorted((height, width))
        resized_long = int(self.short_side * long / short)
        if height <= width:
            return self.short_side, resized_long
        return resized_long, self.short_side


def faster(transform: Transform) -> Transform:
    """Return what computes the same as a model's transform, but faster, or the transform itself.

    Args:
        transform: RGB image to uint8 `(3, H, W)`, as in `tocom_core.models.LoadedModel`.
    """
    steps = transform.transforms if isinstance(transform, Compose) else []
    match steps:
        case [Resize() as resize, CenterCrop() as crop, _]:
            mode, side = _MODES.get(resize.interpolation), resize.size
            known = mode is not None and resize.max_size is None and resize.antialias
            if mode and known and isinstance(side, int) and max(crop.size) <= side:
                return CentreOfResized(side, tuple(crop.size), mode)
    return transform
