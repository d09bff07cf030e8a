"""Bring a data set's labels into the order of a model's classes.

A folder of images numbers its sub-folders by the alphabet, and a test folder that lacks one class
numbers the rest differently.  Accuracy by position would then be quietly wrong, so classes are
matched by name wherever both sides have names.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from timm.data import ImageNetInfo, infer_imagenet_subset

from tocom_core.errors import DataError
from tocom_core.models import LoadedModel
from tocom_core.sources import ImageSource

logger = logging.getLogger(__name__)


class RenumberedSource:
    """Another source's images with their labels renumbered.

    Args:
        source: where the images come from.
        numbers: for each of its labels, the class of the model.
        class_names: the model's.
    """

    def __init__(
        self, source: ImageSource, numbers: Sequence[int], class_names: tuple[str, ...]
    ) -> None:
        self._source, self._numbers = source, numbers
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._source)

    def label(self, index: int) -> int | None:
        """The model's class index of an image, if it has a label."""
        label = self._source.label(index)
        return None if label is None else self._numbers[label]

    def image_bytes(self, index: int) -> bytes:
        """The encoded image."""
        return self._source.image_bytes(index)

    def name(self, index: int) -> str:
        """Where the image lies."""
        return self._source.name(index)


def match_classes(source: ImageSource, loaded: LoadedModel) -> ImageSource:
    """The data set with labels that are the model's class indices.

    Names are compared without regard to case and spelling of gaps, with the model's labels and, for
    an ImageNet model, with the WordNet ids that name ImageNet's folders.  Where the names are of
    another kind altogether but as many as the model's classes, they are taken by position, with a
    warning.

    Raises:
        DataError: the classes are not the model's, or a label is none of them.
    """
    names = source.class_names
    if not names or _unnamed(loaded.labels):
        return _within(source, len(loaded.labels))
    for known in (loaded.labels, _wordnet_ids(loaded)):
        numbers = _places(names, known)
        if numbers is None:
            continue
        if numbers == list(range(len(numbers))):
            return _within(source, len(loaded.labels))
        logger.info("the data set's %d classes are matched by name", len(names))
        return RenumberedSource(source, numbers, loaded.labels)
    return _by_position(source, loaded)


def _places(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Where in ``known`` the names are; ``None`` unless each is there, and there once."""
    wanted, there = [_plain(name) for name in names], [_plain(name) for name in known]
    if wanted == there:
        return list(range(len(there)))
    times = Counter(there)
    if any(times[name] != 1 for name in wanted):
        return None
    places = {name: place for place, name in enumerate(there)}
    return [places[name] for name in wanted]


def _by_position(source: ImageSource, loaded: LoadedModel) -> ImageSource:
    """The source as it is, if its names can be other words for the model's classes."""
    names, labels = source.class_names, loaded.labels
    own = {_plain(label) for label in labels}
    moved = [
        name
        for number, name in enumerate(names)
        if _plain(name) in own and _plain(labels[min(number, len(labels) - 1)]) != _plain(name)
    ]
    if len(names) != len(labels) or moved:
        raise DataError(
            f"the data set's {len(names)} classes ({_some(names)}) are not the model's "
            f"{len(labels)} ({_some(labels)}); give its classes the model's names, or evaluate on "
            "data of the model's classes"
        )
    logger.warning(
        "classes are taken by position: the data set calls them %s, the model %s",
        _some(names),
        _some(labels),
    )
    return _within(source, len(labels))


def _within(source: ImageSource, classes: int) -> ImageSource:
    for index in range(len(source)):
        label = source.label(index)
        if label is not None and label >= classes:
            raise DataError(
                f"{source.name(index)} has label {label}, but the model's {classes} classes are 0 "
                f"to {classes - 1}; evaluate on data of the model's classes"
            )
    return source


def _wordnet_ids(loaded: LoadedModel) -> tuple[str, ...]:
    subset = infer_imagenet_subset(loaded.vit)
    return () if subset is None else tuple(ImageNetInfo(subset).label_names())


def _unnamed(labels: Sequence[str]) -> bool:
    """Whether the model's labels are mere numbers, as ``class_labels`` makes them up."""
    return all(label == f"class {number}" for number, label in enumerate(labels))


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
