"""Prepared pixels to what the queue takes: exactly, or refused."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.pixel_input import OutOfRange, PixelFormat

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMAT = PixelFormat(16, 48, MEAN, STD, lambda pixels: pixels)


def normalised(levels: NDArray[Any]) -> NDArray[np.float32]:
    """Levels ``(3, H, W)`` as a client normalises them, in float32."""
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (MEAN, STD))
    values: NDArray[np.float32] = (levels.astype(np.float32) / np.float32(255) - mean) / std
    return values


def test_every_byte_of_every_channel_comes_back() -> None:
    """The usual pipeline is undone exactly."""
    levels = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (3, 1, 3))
    made, rounding = FORMAT.of_normalised(normalised(levels))
    assert made.dtype == np.uint8 and made.flags.c_contiguous and rounding == 0
    np.testing.assert_array_equal(made, levels)


def test_half_precision_comes_back_too() -> None:
    """What a client loses to bfloat16-like rounding is told, not hidden."""
    levels = np.full((3, 16, 48), 200.3)
    made, rounding = FORMAT.of_normalised(normalised(levels))
    assert (made == 200).all() and rounding == pytest.approx(0.3, abs=0.01)
    edge, far = FORMAT.of_normalised(normalised(np.full((3, 16, 48), 255.4)))
    assert (edge == 255).all() and far == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_are_finite(value: float) -> None:
    """A single value is enough."""
    values = normalised(np.full((3, 16, 48), 9.0))
    values[2, 15, 47] = value
    with pytest.raises(OutOfRange, match="finite"):
        FORMAT.of_normalised(values)


@pytest.mark.parametrize("level", [-1.0, 256.0, 40_000.0, 1e30])
def test_what_no_byte_stands_for_is_refused(level: float) -> None:
    """As are pixels that nobody normalised."""
    with pytest.raises(OutOfRange, match=r"they lie between -2.118 and 2.64"):
        FORMAT.of_normalised(normalised(np.full((3, 16, 48), level)))


def test_bytes_are_copied() -> None:
    """What waits in the queue does not hold the body that it came in."""
    body = bytearray(16 * 48 * 3)
    pixels = np.frombuffer(body, np.uint8).reshape(16, 48, 3)
    made = FORMAT.of_bytes(pixels)
    body[:] = b"\x07" * len(body)
    assert made.shape == (3, 16, 48) and made.flags.c_contiguous and not made.any()
