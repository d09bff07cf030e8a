"""Real photographs as JPEG bytes, to be posted to a server."""

import io
import itertools
import os
from pathlib import Path

from PIL import Image

from tocom_core.sources import open_source

JPEG_MAGIC = b"\xff\xd8\xff"


def photographs(spec: str | None, count: int) -> list[bytes]:
    """Up to ``count`` JPEG files.

    Args:
        spec: a folder, parquet file or ``hub:`` data set; ``None`` takes ``imagenet_ccby`` of the
            folder that ``TOCOM_DATA`` names, or else the photographs that scikit-image ships.
        count: how many at most.

    Raises:
        DataError: there is no such data set.
    """
    data = os.environ.get("TOCOM_DATA")
    if spec is None and data and (Path(data) / "imagenet_ccby").is_dir():
        spec = str(Path(data) / "imagenet_ccby")
    if spec is None:
        return shipped()[:count]
    source = open_source(spec)
    contents = (source.image_bytes(index) for index in range(len(source)))
    found = [*itertools.islice((c for c in contents if c.startswith(JPEG_MAGIC)), count)]
    if not found:
        raise SystemExit(f"no JPEG in {spec}: give a data set of JPEG files with --images")
    return found


def shipped() -> list[bytes]:
    """scikit-image's photographs and their mirror images."""
    from skimage import data

    names = ("chelsea", "coffee", "astronaut")
    pictures = [Image.fromarray(getattr(data, name)()) for name in names]
    mirrored = [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in pictures]
    return [_jpeg(picture) for picture in pictures + mirrored]


def resized_cat(width: int, quality: int) -> bytes:
    """A cat so many pixels wide; at 451 and quality 75 it is a photograph of some 20 kB."""
    from skimage import data

    cat = Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]
    height = round(width * cat.height / cat.width)
    return _jpeg(cat.resize((width, height)), quality)


def _jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
