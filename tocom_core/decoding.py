"""Encoded image to RGB pixels, the same way for training, evaluation and what is served.

Data sets hold more than 8-bit RGB: palettes, transparency, CMYK, 16-bit samples, animations,
photographs whose camera was turned.  Pillow's plain ``convert`` clips 16-bit samples to white and
ignores the camera's rotation.
"""

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tocom_core.errors import DataError

_COMMON_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
IMAGE_SUFFIXES = frozenset({".avif", ".pgm", ".ppm", *_COMMON_SUFFIXES})  # in lower case
# What reading and decoding an image may raise.
UNREADABLE = (OSError, DataError)

_ORIENTATION_TAG = 0x0112
_TURNED_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_rgb(content: bytes) -> Image.Image:
    """Decode one image file: first frame, upright, RGB, over white where it is transparent.

    Raises:
        DataError: no image, in no format that Pillow knows, truncated, corrupt, or far too large.
    """
    if not content:
        raise DataError("the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return upright_rgb(image)
    except UnidentifiedImageError:
        raise DataError("the content is no image") from None
    # Pillow's decoders answer to bad bytes with OSError, SyntaxError, ValueError, struct.error,
    # zlib.error, IndexError, TypeError and more, and the list grows with each format.
    except Exception as error:
        raise DataError(f"truncated, corrupt or too large ({error})") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A loaded image in RGB, over white where it is transparent, with the camera's turn undone."""
    pixels = _to_rgb(image)
    try:
        turn = _TURNED_BY_ORIENTATION.get(int(image.getexif().get(_ORIENTATION_TAG, 1)))
    except Exception:  # odd metadata, in as many ways as above, is no reason to refuse good pixels
        turn = None
    return pixels if turn is None else pixels.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow to RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bit(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(rgba, mask=rgba)
    return page


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float samples to 8-bit grey, scaled.

    16-bit modes have a fixed range.  For the others it is guessed from the values: one of the
    usual ranges if they fit in (0…1 for floats, 8 bits, 16 bits), else the range that occurs.
    """
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
        samples = np.asarray(image.convert("I"), dtype=np.float32)
    else:
        samples = np.nan_to_num(np.asarray(image, dtype=np.float32))
        low, high = _sample_range(samples, is_float=image.mode == "F")
    scaled = (samples - low) * (255.0 / (high - low))
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def _sample_range(samples: np.ndarray[Any, Any], is_float: bool) -> tuple[float, float]:
    """The range that these samples most likely use."""
    low, high = float(samples.min()), float(samples.max())
    if low >= 0:
        for usual in (1.0, 255.0, 65535.0)[0 if is_float else 1 :]:
            if high <= usual:
                return 0.0, usual
    return (low, high) if high > low else (low, low + 1.0)
