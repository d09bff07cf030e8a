"""Labelled images for fine-tuning: which to learn from, which to choose by, which to report on.

Three parts that never mix.  What is learned from and what choices are judged on (the scale of
adapters, the best step) both come out of the training data; the test data is only reported on.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from tocom_core.errors import DataError
from tocom_core.sources import ImageSource, SubsetSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledParts:
    """The images of one fine-tuning.

    Attributes:
        names: one per class.
        named: whether the data set itself names its classes; else ``names`` are numbers.
        training: everything that may be learned from.
        learned: the same without ``held_out``.
        held_out: what choices are judged on; ``None`` where nothing is chosen.
        test: what is reported on; ``None`` where there is none.
    """

    names: tuple[str, ...]
    named: bool
    training: ImageSource
    learned: ImageSource
    held_out: ImageSource | None
    test: ImageSource | None


def class_names(source: ImageSource) -> tuple[str, ...]:
    """The data set's class names, or numbers up to its largest label.

    Raises:
        DataError: an image has no label, or one beyond the names.
    """
    labels = _labels(source, "training")
    count = max(labels) + 1
    names = tuple(source.class_names) or tuple(f"class {i}" for i in range(count))
    if len(names) < count:
        raise DataError(
            f"label {count - 1} occurs, but the data set names only {len(names)} classes"
        )
    return names


def warn_of_empty_classes(source: ImageSource, names: tuple[str, ...]) -> None:
    """Name the classes that no image shows: the head will hold them, untaught."""
    present = set(_labels(source, "training"))
    missing = [name for number, name in enumerate(names) if number not in present]
    if missing:
        logger.warning("no training image of class %s", _listed(missing))


def check_test_labels(source: ImageSource, names: tuple[str, ...]) -> None:
    """Refuse test data of other classes than the training data's.

    Raises:
        DataError: an image has no label or one beyond the head, or the classes differ in name.
    """
    theirs = tuple(source.class_names)
    if theirs and theirs != names:
        raise DataError(
            "the classes of the test data are not those of the training data: "
            f"{_difference(theirs, names)}; give both the same names in the same order"
        )
    largest = max(_labels(source, "test"))
    if largest >= len(names):
        raise DataError(
            f"label {largest} occurs in the test data, but the training data has only "
            f"{len(names)} classes; a head for {largest + 1} needs training images of them"
        )


def _difference(theirs: tuple[str, ...], names: tuple[str, ...]) -> str:
    """In what the names of the test classes differ from those of the training classes."""
    told = [
        f"only the {part} data has {_listed([name for name in own if name not in set(others)])}"
        for part, own, others in (("test", theirs, names), ("training", names, theirs))
        if not set(own) <= set(others)
    ]
    return ", ".join(told) or "they come in another order"


def _listed(words: Sequence[str], most: int = 20) -> str:
    """The first words, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def spread(source: ImageSource, count: int, seed: int) -> tuple[ImageSource, ImageSource]:
    """Draw images at random, as many of each class as its share of the data set asks for.

    Args:
        source: labelled images.
        count: how many to draw, at most all; no class gets more than one image too many or too few.
        seed: decides which.

    Returns:
        the drawn images and the rest, each in the order of the source.
    """
    generator = torch.Generator().manual_seed(seed)
    total = len(source)
    shuffled = torch.randperm(total, generator=generator).tolist()
    by_class = sorted(shuffled, key=lambda index: source.label(index) or 0)  # stable
    chosen = {by_class[(2 * i + 1) * total // (2 * count)] for i in range(count)}
    rest = [index for index in range(total) if index not in chosen]
    return SubsetSource(source, sorted(chosen)), SubsetSource(source, rest)


def at_most(source: ImageSource, count: int, seed: int) -> ImageSource:
    """``count`` images spread over the classes; all of them if there are no more, or for 0."""
    return spread(source, count, seed)[0] if 0 < count < len(source) else source


def hold_out(source: ImageSource, count: int, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split the training images: ``(learned from, held out to choose by)``.

    Args:
        source: all training images.
        count: how many to hold out; 0 for a tenth.
        seed: decides which.

    Raises:
        DataError: less than one image, or half of all or more, would be held out.
    """
    count = count or len(source) // 10
    if not 0 < count < (len(source) + 1) // 2:
        raise DataError(
            f"--val-images {count} of {len(source)} training images; hold out at least one and "
            "less than half of them"
        )
    held_out, learned = spread(source, count, seed)
    return learned, held_out


def _labels(source: ImageSource, part: str) -> list[int]:
    """Every image's label; ``DataError`` if one has none."""
    labels: Iterable[int | None] = map(source.label, range(len(source)))
    known = []
    for index, label in enumerate(labels):
        if label is None:
            raise DataError(
                f"{source.name(index)} in the {part} data has no label; fine-tuning needs a label "
                "for every image: use one sub-folder per class, or name the label column"
            )
        known.append(label)
    return known
