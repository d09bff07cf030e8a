"""Whatever holds an image, to the bytes that are sent.

A path, bytes, an open binary file, or anything that saves itself as Pillow's images do (Pillow
itself is not imported). Bytes go as they are, for the server reads JPEG, PNG, WebP and more; only
an image of Pillow's has none, so it becomes a PNG, which loses nothing.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, runtime_checkable

from tocom_client.errors import InvalidImage

PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
FAST = 1
"""zlib's level: photographs hardly get smaller with more."""

_MAGIC = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"))


@runtime_checkable
class SavesItself(Protocol):
    """What is used of `PIL.Image.Image`."""

    @property
    def mode(self) -> str:
        """How its pixels are kept."""

    @property
    def info(self) -> Mapping[Any, Any]:
        """What its file said beside the pixels."""

    def convert(self, mode: str) -> "SavesItself":
        """The same picture in another mode."""

    def save(self, fp: IO[bytes], format: str, **options: Any) -> None:
        """Write it as a file of this format."""


ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | SavesItself
)
"""A path, encoded bytes, an open binary file, or an image of Pillow's."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file in memory; `filename` is for the caller's eyes and is not sent."""

    data: bytes
    media_type: str
    filename: str | None = None


def encode(source: ImageSource) -> EncodedImage:
    """The bytes of an image.

    Raises:
        InvalidImage: a file cannot be read, or an image of Pillow's cannot be written.
        TypeError: it is nothing that holds an image.
    """
    if isinstance(source, str | os.PathLike):
        return _read(Path(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _encoded(bytes(source), None)
    if isinstance(source, SavesItself):
        return _written(source)
    read = getattr(source, "read", None)
    data = read() if callable(read) else None
    if not isinstance(data, bytes):
        raise TypeError(
            f"expected a path, bytes, a binary file or an image of Pillow's, "
            f"found {type(source).__name__}"
        )
    return _encoded(data, None)


def name_of(source: ImageSource) -> str | None:
    """The last part of a path; None for what is none."""
    return Path(source).name if isinstance(source, str | os.PathLike) else None


def _read(path: Path) -> EncodedImage:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidImage(f"the file {str(path)!r} cannot be read: {reason}") from error
    return _encoded(data, path.name)


def _encoded(data: bytes, filename: str | None) -> EncodedImage:
    """The server looks at the bytes itself; the type only has to say that it is an image."""
    found = next((name for magic, name in _MAGIC if data.startswith(magic)), "unknown")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = "webp"
    return EncodedImage(data, f"image/{found}", filename)


def _written(image: SavesItself) -> EncodedImage:
    """As PNG, with the orientation that the server would otherwise have applied."""
    buffer = io.BytesIO()
    options = {"exif": image.info["exif"]} if "exif" in image.info else {}
    try:
        plain = image if image.mode in PNG_MODES else image.convert("RGB")
        plain.save(buffer, "PNG", compress_level=FAST, **options)
    except (OSError, ValueError) as error:
        raise InvalidImage(f"the image cannot be written as PNG: {error}") from error
    filename = getattr(image, "filename", None)
    named = Path(filename).name if isinstance(filename, str) and filename else None
    return EncodedImage(buffer.getvalue(), "image/png", named)
