"""The photographs that a bench sends, with the class that the served model should find in each.

Where labels are missing, or are not the model's classes, the bench still runs: correctness is then
not known, and `Pictures.unknown` says why.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from server.fates import UNKNOWN
from server.served_process import MeasurementError

if TYPE_CHECKING:
    from tocom_core.models import LoadedModel
    from tocom_core.sources import ImageSource

JPEG_MAGIC = b"\xff\xd8\xff"
DRAWN = 16


@dataclass(frozen=True, slots=True)
class Pictures:
    """JPEG files in a fixed order.

    Attributes:
        files: their bytes.
        labels: the model's class of each; None where it is not known.
        unknown: why classes are not known; empty if all are.
    """

    files: tuple[bytes, ...]
    labels: tuple[int | None, ...]
    unknown: str = ""

    def correct(self, place: int, index: int) -> float:
        """Return 1 if that class is the picture's, 0 if not, NaN if nobody knows."""
        label = self.labels[place]
        return UNKNOWN if label is None else float(label == index)


@dataclass(frozen=True, slots=True)
class _ServedModel:
    """What `match_classes` asks of a model, from what `GET /model` says of it."""

    labels: tuple[str, ...]

    @property
    def vit(self) -> dict[str, Any]:
        """The number of classes, by which timm knows ImageNet's sets."""
        return {"num_classes": len(self.labels)}


def open_pictures(
    place: str | None, split: str | None, count: int, model_labels: Sequence[str]
) -> Pictures:
    """Read up to `count` JPEG files, spread evenly over the data set.

    Args:
        place: as of `tocom_core.sources.open_source`; None draws pictures of nothing.
        split: the part of it.
        count: at most so many.
        model_labels: names of the served model's classes.

    Raises:
        DataError: the place cannot be opened.
        MeasurementError: it holds no JPEG.
    """
    if place is None:
        return Pictures(_drawn(DRAWN), (None,) * DRAWN, "no --images with labels were given")
    from tocom_core.sources import open_source  # imports pyarrow

    source, unknown = _matched(open_source(place, split), model_labels)
    files, labels = [], []
    for index in _spread(len(source)):
        content = source.image_bytes(index)
        if content.startswith(JPEG_MAGIC):
            files.append(content)
            labels.append(None if unknown else source.label(index))
        if len(files) == count:
            break
    if not files:
        raise MeasurementError(f"no JPEG in {place}: give a data set of JPEG files with --images")
    if not unknown and None in labels:
        unknown = f"{labels.count(None)} of {len(labels)} images of {place} have no label"
    return Pictures(tuple(files), tuple(labels), unknown)


def _matched(source: "ImageSource", model_labels: Sequence[str]) -> tuple["ImageSource", str]:
    """The source with the model's class numbers, and why not if that cannot be."""
    if all(source.label(index) is None for index in range(len(source))):
        return source, "the images have no labels"
    from tocom_core.class_matching import match_classes  # imports torch
    from tocom_core.errors import DataError

    model = cast("LoadedModel", _ServedModel(tuple(model_labels)))
    try:
        return match_classes(source, model), ""
    except DataError as error:
        return source, str(error)


def _spread(length: int) -> list[int]:
    """All indices so that any first few of them lie all over the data set, which may be sorted."""
    return [int(index) for index in np.random.default_rng(0).permutation(length)]


def _drawn(count: int) -> tuple[bytes, ...]:
    """Pictures of coarse and fine noise, as costly to decode as photographs."""
    generator = np.random.default_rng(0)
    return tuple(_jpeg(_noise(generator)) for _ in range(count))


def _noise(generator: np.random.Generator) -> Image.Image:
    coarse = generator.integers(0, 256, (6, 8, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC)
    grain = generator.normal(0, 12, (300, 400, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
