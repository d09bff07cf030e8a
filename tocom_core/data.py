"""Images on their way into training: augmented and shuffled.

Every random draw depends on ``(seed, epoch, index)`` alone, so that a resumed run, with any number
of workers, sees exactly the images that it would have seen.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tocom_core.decoding import UNREADABLE, decode_rgb
from tocom_core.errors import DataError, DataWarning
from tocom_core.sources import ImageSource


def augmentation(
    input_size: tuple[int, int, int],
    interpolation: str,
    min_scale: float,
    color_jitter: float,
    auto_augment: str | None = None,
    erasing: float = 0.0,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Callable[[Image.Image], Tensor]:
    """Build timm's training transform without normalisation: RGB image to uint8 tensor.

    Args:
        input_size: ``(3, H, W)`` of the model.
        interpolation: of the random crop, by timm's name.
        min_scale: smallest area of the crop, as a share of the image.
        color_jitter: strength of brightness, contrast and saturation; timm leaves it out where
            ``auto_augment`` is given.
        auto_augment: timm's policy, such as ``rand-m9-mstd0.5-inc1`` (RandAugment).
        erasing: share of images of which a rectangle becomes noise (``PixelErasing``).
        mean: of the model's normalisation; the colour of the noise, and of what a policy's
            rotations and shears leave empty.
        std: likewise, for the noise.
    """
    transform = create_transform(
        input_size,
        is_training=True,
        scale=(min_scale, 1.0),
        color_jitter=color_jitter or None,
        auto_augment=auto_augment,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
        normalize=False,
    )
    if erasing:
        transform.transforms.append(PixelErasing(erasing, mean, std))
    result: Callable[[Image.Image], Tensor] = transform
    return result


class PixelErasing:
    """timm's random erasing with noise per pixel, for uint8 images.

    timm erases after normalisation, where the noise is N(0, 1), and silently leaves erasing out of
    a transform without normalisation.  Here the same noise is taken back to pixel values,
    ``255 (mean + std · noise)``, rounded, and cut off at 0 and 255; the other pixels stay as they
    are.  So all draws belong to the image, and not to the batch that it happens to be in.
    """

    def __init__(self, probability: float, mean: Sequence[float], std: Sequence[float]) -> None:
        self._erase = RandomErasing(probability, mode="pixel", device="cpu")
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """``(3, H, W)`` uint8 to the same with perhaps one rectangle of noise."""
        noise = self._erase(torch.full(image.shape, torch.nan))  # NaN where nothing is erased
        pixels = (255 * (self._mean + self._std * noise)).round().clamp(0, 255)
        return torch.where(noise.isnan(), image, pixels.nan_to_num().to(torch.uint8))


class TrainingImages(Dataset[tuple[Tensor, int, int]]):
    """Augmented images, addressed by ``(epoch, index)``: ``(image, label, skipped)``.

    Args:
        source: where the images come from.
        transform: PIL image to tensor.
        seed: with epoch and index it decides every random draw of the transform.

    An image that cannot be decoded is replaced by the next one, with a ``DataWarning`` the first
    time; ``skipped`` says how many were passed over for this one, so that their sum over a batch
    counts them also where worker processes load.  The label of an unlabelled image is -1.
    """

    def __init__(
        self, source: ImageSource, transform: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, index = key
        skipped, image = self._readable(index)
        label = self.source.label((index + skipped) % len(self.source))
        seed_all(hash((self.seed, epoch, index)) & 0x7FFFFFFF)
        return self.transform(image), -1 if label is None else label, skipped

    def _readable(self, index: int) -> tuple[int, Image.Image]:
        """The first readable image from ``index`` on, and how many before it are not."""
        for skipped in range(len(self.source)):
            candidate = (index + skipped) % len(self.source)
            try:
                return skipped, decode_rgb(self.source.image_bytes(candidate))
            except UNREADABLE as error:
                self._report(candidate, error)
        raise DataError(
            "not one image of the data set can be read; the warnings say why: "
            f"the first is {self.source.name(0)}"
        )

    def _report(self, index: int, error: Exception) -> None:
        """Warn of an unreadable image, once in this process."""
        if index not in self._reported:
            self._reported.add(index)
            warnings.warn(
                f"image {index} cannot be read and is replaced by the next one: "
                f"{self.source.name(index)}: {error}",
                DataWarning,
                stacklevel=2,
            )


def seed_all(seed: int) -> None:
    """Seed the three generators that timm's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)`` from step ``start`` on, shuffled anew each epoch.

    A step takes ``batch_size · world_size · accumulate`` images.  They are cut into ``accumulate``
    parts, and each part into one batch per process, all in order: however a step is divided, it
    sees the same images, and N processes together see in each part what one process with an
    N-fold ``batch_size`` sees.

    Args:
        length: images in the data set.
        batch_size: images per batch, of one process.
        steps: where the run ends.
        start: the first step to give; what comes before is skipped, not drawn.
        seed: with the epoch it decides the order.
        rank: which process this is, from 0.
        world_size: how many there are.
        accumulate: batches per step in each process; that many are yielded for each step.

    Raises:
        DataError: fewer images than one step takes; an epoch leaves an incomplete step out.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int,
        start: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        self._step_size = batch_size * world_size * accumulate
        if length < self._step_size:
            parts = f" ({batch_size} x {world_size} processes x {accumulate} accumulated)"
            raise DataError(
                f"{length} images do not fill one batch of {self._step_size}"
                f"{parts * (self._step_size > batch_size)}; lower --batch-size or add images"
            )
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._start, self._steps = start, steps
        self._rank, self._world_size, self._accumulate = rank, world_size, accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Full steps in one pass over the data."""
        return self._length // self._step_size

    def __len__(self) -> int:
        return max(0, self._steps - self._start) * self._accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        ordered_epoch = -1
        for step in range(self._start, self._steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = self._order(epoch), epoch
            for part in range(self._accumulate):
                place = part * self._world_size + self._rank
                first = number * self._step_size + place * self._batch_size
                yield [(epoch, i) for i in order[first : first + self._batch_size]]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        result: list[int] = torch.randperm(self._length, generator=generator).tolist()
        return result
