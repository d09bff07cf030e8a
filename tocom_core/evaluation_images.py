"""The images that a model is judged by, and those that a scaling is chosen on: never the same."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tocom_core.class_matching import match_classes
from tocom_core.errors import DataError
from tocom_core.models import LoadedModel
from tocom_core.sources import UNREADABLE, ImageSource, SubsetSource, open_part

logger = logging.getLogger(__name__)

VALIDATION_SPLITS = ("val", "valid", "validation", "train")
"""Parts of a data set that a scaling is chosen on, the first there is, if none is named."""


@dataclass(frozen=True)
class ImagePlace:
    """Where a user says that images are; fields as the arguments of ``open_part``."""

    data: str
    split: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    need_split: bool = False

    @property
    def short(self) -> str:
        """The data set's name without the folders that lead to it."""
        if self.data.startswith("hub:"):
            return self.data
        return Path(self.data).expanduser().absolute().name

    def __str__(self) -> str:
        return self.short + (f", split {self.split}" if self.split else "")


@dataclass(frozen=True)
class JudgingImages:
    """Images whose labels, if there are any, are a model's class indices.

    Attributes:
        source: the images.
        labelled: whether all have a label; else none has.
        place: where they come from; its ``split`` is ``None`` if all images there were taken.
    """

    source: ImageSource
    labelled: bool
    place: ImagePlace


def open_images(place: ImagePlace, loaded: LoadedModel) -> JudgingImages:
    """Open a data set for a model.

    Raises:
        DataError: it cannot be read, its classes are not the model's, it holds labels for some
            images only, or none in a column that was named.
    """
    source, part = open_part(
        place.data,
        place.split,
        place.image_column,
        place.label_column,
        need_split=place.need_split,
    )
    source = match_classes(source, loaded)
    missing = sum(source.label(index) is None for index in range(len(source)))
    if 0 < missing < len(source):
        raise DataError(
            f"{place}: {missing} of {len(source)} images have no label; evaluation needs one for "
            "every image, or for none"
        )
    if missing and place.label_column != "label":
        raise DataError(f"{place}: no labels in column {place.label_column!r}; name another one")
    return JudgingImages(source, not missing, replace(place, split=part))


def validation_images(
    place: ImagePlace, test: JudgingImages, loaded: LoadedModel, limit: int
) -> JudgingImages:
    """At most ``limit`` images to choose a scaling on, none of which is a test image.

    Args:
        place: where; with ``split=None`` all of it, if it is not the test data's own place, else
            the first of its ``VALIDATION_SPLITS``.
        test: what will be evaluated on.
        loaded: the model.
        limit: draw so many at random; 0 is all.

    Raises:
        DataError: there are none.
    """
    if place.split is not None or place.data != test.place.data:
        return _apart(open_images(place, loaded), test, limit)
    for split in VALIDATION_SPLITS:
        try:
            part = open_images(replace(place, split=split, need_split=True), loaded)
            return _apart(part, test, limit)
        except DataError as error:
            logger.debug("no scaling is chosen on %s: %s", split, error)
    raise DataError(
        f"several scalings need validation images to choose by, and {place.data} has no part named "
        f"{', '.join(VALIDATION_SPLITS)} beside what is evaluated; name some with --val-data or "
        "--val-split, or give one scaling"
    )


def _apart(images: JudgingImages, test: JudgingImages, limit: int) -> JudgingImages:
    """Some of the images, at random, that are not in ``test``, whatever the files are called."""
    source = images.source
    tested = {_digest(test.source, index) for index in range(len(test.source))} - {None}
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    taken: list[int] = []
    shared = 0
    for index in order:
        if limit and len(taken) == limit:
            break
        digest = _digest(source, index)
        shared += digest in tested
        if digest is not None and digest not in tested:
            taken.append(index)
    if not taken:
        raise DataError(
            f"{images.place}: all {len(source)} images are evaluated on as well; a scaling must "
            "not be chosen on the images it is judged by: name others with --val-data or "
            "--val-split"
        )
    if shared:
        logger.warning("%d images of %s are left out: they are test images", shared, images.place)
    return replace(images, source=SubsetSource(source, sorted(taken)))


def _digest(source: ImageSource, index: int) -> bytes | None:
    """What tells an image file from others; ``None`` if it cannot be read at all."""
    try:
        return hashlib.blake2b(source.image_bytes(index), digest_size=16).digest()
    except UNREADABLE:
        return None
