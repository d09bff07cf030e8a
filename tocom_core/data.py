"""Images on their way into a model: augmented and shuffled for training, in order for evaluation.

Every random draw depends on ``(seed, epoch, index)`` alone, so that a resumed run, with any number
of workers, sees exactly the images that it would have seen.
"""

import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tocom_core.errors import DataError, DataWarning
from tocom_core.sources import UNREADABLE, ImageSource, decode_rgb


def augmentation(
    input_size: tuple[int, int, int],
    interpolation: str,
    min_scale: float,
    color_jitter: float,
    auto_augment: str | None = None,
) -> Callable[[Image.Image], Tensor]:
    """Build timm's training transform without normalisation: RGB image to uint8 tensor."""
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size,
        is_training=True,
        scale=(min_scale, 1.0),
        color_jitter=color_jitter or None,
        auto_augment=auto_augment,
        interpolation=interpolation,
        normalize=False,
    )
    return transform


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Augmented images, addressed by ``(epoch, index)``.

    Args:
        source: where the images come from.
        transform: PIL image to tensor.
        seed: with epoch and index it decides every random draw of the transform.

    An image that cannot be decoded is replaced by the next one, with a warning; the label of an
    unlabelled image is -1.
    """

    def __init__(
        self, source: ImageSource, transform: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        index, image = self._readable(index)
        seed_all(hash((self.seed, epoch, index)) & 0x7FFFFFFF)
        label = self.source.label(index)
        return self.transform(image), -1 if label is None else label

    def _readable(self, index: int) -> tuple[int, Image.Image]:
        """The image at ``index``, or the first readable one after it."""
        for step in range(len(self.source)):
            candidate = (index + step) % len(self.source)
            try:
                return candidate, decode_rgb(self.source.image_bytes(candidate))
            except UNREADABLE as error:
                warnings.warn(
                    f"image {candidate} cannot be read and is replaced by the next one: {error}",
                    DataWarning,
                    stacklevel=2,
                )
        raise DataError("not one image of the data set can be read")


def seed_all(seed: int) -> None:
    """Seed the three generators that timm's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)`` from step ``start`` on, shuffled anew each epoch.

    Args:
        length: images in the data set.
        batch_size: images per step; the incomplete last batch of an epoch is left out.
        steps: where the run ends.
        start: the first step to give; what comes before is skipped, not drawn.
        seed: with the epoch it decides the order.
    """

    def __init__(self, length: int, batch_size: int, steps: int, start: int, seed: int) -> None:
        if length < batch_size:
            raise DataError(f"{length} images do not fill one batch of {batch_size}")
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._start, self._steps = start, steps

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the data."""
        return self._length // self._batch_size

    def __len__(self) -> int:
        return max(0, self._steps - self._start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        ordered_epoch = -1
        for step in range(self._start, self._steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = self._order(epoch), epoch
            first = batch * self._batch_size
            yield [(epoch, i) for i in order[first : first + self._batch_size]]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        result: list[int] = torch.randperm(self._length, generator=generator).tolist()
        return result


def evaluation_batches(
    source: ImageSource, transform: Callable[[Image.Image], Tensor], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, transformed without randomness.

    Yields:
        ``(B, 3, H, W)`` images as the transform gives them and ``(B,)`` int64 labels, -1 where
        there is none.  An unreadable image raises ``DataError``: a figure must not hide it.
    """
    for first in range(0, len(source), batch_size):
        indices = range(first, min(first + batch_size, len(source)))
        images, labels = [], []
        for index in indices:
            try:
                images.append(transform(decode_rgb(source.image_bytes(index))))
            except UNREADABLE as error:
                raise DataError(f"image {index} cannot be read: {error}") from error
            label = source.label(index)
            labels.append(-1 if label is None else label)
        yield torch.stack(images), torch.tensor(labels)
