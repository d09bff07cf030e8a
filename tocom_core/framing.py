"""Which part of a picture a model sees: the crop that its transform makes, in the picture's pixels.

A model's input is resized and cropped; whoever wants to draw something of the model's over the
picture itself has to know where that input lies in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from timm.data.transforms import CenterCropOrPad
from torch import Tensor
from torchvision.transforms import CenterCrop


@dataclass(frozen=True)
class Frame:
    """A rectangle of a picture, in its pixels; where the transform pads it lies outside in part."""

    left: float
    top: float
    width: float
    height: float


def framed(transform: Callable[[Image.Image], Tensor], image: Image.Image) -> tuple[Tensor, Frame]:
    """Apply a model's transform, and say which part of the image its result shows.

    The steps of a ``Compose`` are gone through one by one; a step that changes the size is a centre
    crop or a resize of the whole, as all of timm's evaluation transforms are.

    Args:
        transform: RGB image to uint8 ``(3, H, W)``, as in ``LoadedModel``.
        image: RGB.

    Returns:
        The model's input, and the part of ``image`` that it shows.
    """
    left, top, scale_x, scale_y = 0.0, 0.0, 1.0, 1.0
    value: Any = image
    for step in getattr(transform, "transforms", [transform]):
        before = _size(value)
        value = step(value)
        after = _size(value)
        if isinstance(step, CenterCrop | CenterCropOrPad):
            left += _first_kept(before[0], after[0]) * scale_x
            top += _first_kept(before[1], after[1]) * scale_y
        else:
            scale_x *= before[0] / after[0]
            scale_y *= before[1] / after[1]
    width, height = _size(value)
    return value, Frame(left, top, width * scale_x, height * scale_y)


def _first_kept(before: int, after: int) -> int:
    """Where a centre crop begins; negative where it pads instead."""
    if after > before:
        return -((after - before) // 2)
    return round((before - after) / 2)


def _size(image: Any) -> tuple[int, int]:
    """Width and height of a Pillow image or of a tensor ``(…, H, W)``."""
    return image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])
