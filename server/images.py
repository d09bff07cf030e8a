"""Bytes from a stranger to the model's uint8 input, or a clear refusal.

Everything that can be wrong with an uploaded image is dealt with here, so that no other module has
to know Pillow: the format is looked up in the content and not in the declared type, pixels are
counted before any of them is decoded, and every way in which a decoder can fail ends in a
``NotAnImage``.  Needs no torch: the model's transform is handed in.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from server.errors import ImageTooLarge, NotAnImage
from tocom_core.decoding import upright_rgb

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""Pillow's names of the formats that are tried; JPEG includes the MPO of many phones."""

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or PPM"

_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 16
"""Of a progressive JPEG with as many pixels as are allowed; cameras and encoders write 10."""

_MAX_ASPECT = 32
"""Longer images lose their ends: resizing their short side would blow the long one up."""


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost.

    Attributes:
        max_bytes: size of the encoded file.
        max_pixels: width times height, read from the header.
        draft_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side
            keeps at least this many pixels; 0 always decodes in full.
    """

    max_bytes: int
    max_pixels: int
    draft_side: int = 0


def guard_pillow(limits: ImageLimits) -> None:
    """Set Pillow's process-wide switches once, before the first ``decode``.

    Pillow's own pixel limit also covers what the header check here cannot see (tiles and frames
    larger than the image); it raises above twice its value and only warns below that.  Its
    warnings about odd metadata concern the sender, not the operator of this server.
    """
    Image.init()  # imports all plugins now and not during the first request
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(
    data: bytes | bytearray,
    limits: ImageLimits,
    transform: Callable[[Image.Image], T],
    declared_type: str | None = None,
) -> T:
    """Decode one image file and apply the model's resize and crop.

    The first frame of an animation is used, EXIF orientation is applied, transparency is laid over
    white, and samples of more than 8 bits are scaled to 8.

    Args:
        data: the encoded file.
        limits: what it may cost.
        transform: from an RGB image to the model's uint8 input, ``(3, H, W)``.
        declared_type: the content type that the client gave; only used in messages.

    Returns:
        What ``transform`` returns.

    Raises:
        NotAnImage: no image, in none of ``FORMATS``, truncated or corrupt.
        ImageTooLarge: more bytes, pixels or memory than ``limits`` allow.
    """
    if not data:
        raise NotAnImage("The file is empty; send the bytes of an image")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"The file has {len(data)} bytes; at most {limits.max_bytes} are accepted, "
            "so send a smaller or more compressed image"
        )
    return transform(_decode_rgb(data, limits, declared_type))


def _decode_rgb(
    data: bytes | bytearray, limits: ImageLimits, declared_type: str | None
) -> Image.Image:
    """Bytes to an upright RGB image."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, limits)
            if image.format in ("JPEG", "MPO"):
                _check_scans(data, image, limits)
            _decode_scaled(image, limits)
            image.load()
            return _limit_aspect(upright_rgb(image))
    except (NotAnImage, ImageTooLarge):
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLarge(
            f"Decoding the image takes more memory than allowed; at most {limits.max_pixels} "
            "pixels are accepted, so send a smaller image"
        ) from error
    except UnidentifiedImageError as error:
        declared = f", although it is declared as {declared_type[:80]}" if declared_type else ""
        raise NotAnImage(f"The content is no {ACCEPTED} image{declared}; convert it") from error
    # Pillow's decoders answer to bad bytes with OSError, SyntaxError, ValueError, struct.error,
    # zlib.error, IndexError, TypeError and more, and the list grows with each format.
    except Exception as error:
        raise NotAnImage(
            f"The image is truncated or corrupt ({_one_line(error)}); send the whole, intact file"
        ) from error


def _check_pixels(image: Image.Image, limits: ImageLimits) -> None:
    """Refuse by the header alone, before any pixel is decoded."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} = {width * height} pixels; at most "
            f"{limits.max_pixels} are accepted, so send a smaller image"
        )
    if width < 1 or height < 1:
        raise NotAnImage(f"The image has {width} x {height} pixels; it needs at least one")


def _check_scans(data: bytes | bytearray, image: Image.Image, limits: ImageLimits) -> None:
    """Refuse a JPEG whose scans all go over all pixels: a few bytes each, a pass of work each.

    In compressed data a marker's first byte is always followed by a zero, so that each scan that is
    counted is one, but for those of small pictures within the metadata.
    """
    scans = data.count(_START_OF_SCAN)
    if scans * image.width * image.height > _MAX_SCANS * limits.max_pixels and scans > _MAX_SCANS:
        raise ImageTooLarge(
            f"The JPEG goes over its {image.width} x {image.height} pixels {scans} times; save it "
            "with fewer scans"
        )


def _decode_scaled(image: Image.Image, limits: ImageLimits) -> None:
    """Let the JPEG decoder skip detail that the resize would throw away (a no-op elsewhere)."""
    if limits.draft_side:
        image.draft(None, (limits.draft_side, limits.draft_side))


def _limit_aspect(image: Image.Image) -> Image.Image:
    """Cut a very long image to its centre, which is all that a centre crop would see anyway."""
    longest = min(image.size) * _MAX_ASPECT
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _one_line(error: Exception) -> str:
    """A decoder's complaint, short and on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:120]
