"""Pixels that a client prepared itself, as arrays, to the model's uint8 input.

The queue, the shadow runs and the devices know one form of image: eight bits a channel, normalised
where the model is. Values that were normalised already are taken back to the bytes that they came
from. For the usual pipeline (decode, resize and crop in bytes, divide by 255, normalise) that is
exact; a pipeline that resizes in floats moves by half a level at most, and is told by how much.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_HALF_LEVEL = 0.5
_FLOAT_ERROR = 0.01
"""In levels: what float32 loses on the way to normalised values and back."""


class OutOfRange(ValueError):
    """Values that no byte stands for; the message says which are."""


@dataclass(frozen=True)
class PixelFormat:
    """What a model takes in.

    Attributes:
        height: in pixels.
        width: in pixels.
        mean: of each channel, of values in ``[0, 1]``.
        std: likewise.
        to_input: from contiguous uint8 ``(3, H, W)`` to what the queue takes.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    to_input: Callable[[Bytes], Any]

    def of_bytes(self, pixels: Bytes) -> Any:
        """RGB bytes ``(H, W, 3)`` as input; they are copied."""
        return self.to_input(np.array(pixels.transpose(2, 0, 1), order="C"))

    def of_normalised(self, values: NDArray[np.float32]) -> tuple[Any, float]:
        """Normalised ``(3, H, W)`` as input.

        Returns:
            the input, and how far the farthest value was from its byte, in levels of 0 to 255.

        Raises:
            OutOfRange: not all values are normalised bytes.
        """
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        if not np.isfinite(values).all():
            raise OutOfRange("there are values that are no finite numbers")
        levels = (values * std + mean) * np.float32(255)
        rounded = np.rint(levels)
        if rounded.min(initial=0) < 0 or rounded.max(initial=0) > 255:
            lowest, highest = self._range()
            raise OutOfRange(
                f"values lie between {values.min():.4g} and {values.max():.4g}; normalised with "
                f"mean {self.mean} and std {self.std} they lie between {lowest:.4g} and "
                f"{highest:.4g}"
            )
        farthest = float(np.abs(levels - rounded).max(initial=0))
        rounding = 0.0 if farthest < _FLOAT_ERROR else min(farthest, _HALF_LEVEL)
        return self.to_input(rounded.astype(np.uint8, order="C")), rounding

    def _range(self) -> tuple[float, float]:
        pairs = list(zip(self.mean, self.std, strict=True))
        return min(-mean / std for mean, std in pairs), max((1 - m) / s for m, s in pairs)
