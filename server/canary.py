"""A new model's first images, before anybody depends on it.

It runs the images that were served last, and where there are too few of them smooth random ones.
Its scores must be numbers. If its classes are those of the present model it must also agree with
that one often enough: a replacement that sees something else in most images is a mistake (labels in
another order, the wrong file) more often than an improvement. At its highest degree it is compared
with itself, since that is where a bank that does not belong to it shows.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from server.errors import ForwardFailed, ReloadFailed
from server.stats import BatchOutcome

logger = logging.getLogger(__name__)

IMAGES = 32
CHUNK = 8
"""Images per batch: live batches run between them."""
COARSE = 4
"""Pixels of a random image before it is blown up."""


class Runner(Protocol):
    """A model that can be tried: an `Engine`."""

    max_r: int
    r_source: int

    @property
    def labels(self) -> tuple[str, ...]:
        """One name per class."""
        ...

    async def run(self, images: Sequence[Tensor], r: int, /) -> BatchOutcome:
        """Scores of a batch."""
        ...


@dataclass(frozen=True)
class Verdict:
    """How a new model did.

    Attributes:
        images: that it classified.
        recent: those of them that had been served; the others were random.
        agreement: share with the same class as the present model gives them, both at their
            `r_source`; None where the classes differ or the present model fails.
    """

    images: int
    recent: int
    agreement: float | None


async def try_out(
    old: Runner,
    new: Runner,
    recent: Sequence[Tensor],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    bound: float,
) -> Verdict:
    """Run a canary batch through a model that is warm and not served yet.

    Args:
        old: the model that is served.
        new: the one that is to be.
        recent: uint8 images `(3, H, W)` as `old` got them.
        sizes: height and width of the inputs of both.
        bound: the least agreement.

    Raises:
        ReloadFailed: it fails on an image, gives no finite scores, or disagrees.
    """
    recent = list(recent)[-IMAGES:]
    images = recent + random_images(IMAGES - len(recent), sizes[0])
    fitted = images if sizes[0] == sizes[1] else [_fit(image, sizes[1]) for image in images]
    classes = await _classes(new, fitted, new.r_source)
    compressed = await _classes(new, fitted, new.max_r)
    agreement = None
    if old.labels == new.labels:
        agreement = await _compare(old, images, classes, compressed, bound)
    return Verdict(len(images), len(recent), agreement)


async def _compare(
    old: Runner, images: Sequence[Tensor], classes: list[int], compressed: list[int], bound: float
) -> float | None:
    try:
        expected = await _classes(old, images, old.r_source)
        own = await _classes(old, images, old.max_r)
    except ReloadFailed as error:  # then a reload may be what mends the server
        logger.warning("the present model cannot be compared with: %s", error.detail)
        return None
    agreement = _share(expected, classes)
    if agreement < bound:
        raise ReloadFailed(
            f"The new model agrees with the present one on {agreement:.0%} of {len(images)} "
            f"images; at least {bound:.0%} were expected, so the present one stays. If it is "
            "meant to differ, lower min_agreement.",
            agreement=agreement,
        )
    faithful = _share(classes, compressed)
    if faithful < min(bound, _share(expected, own) / 2):
        raise ReloadFailed(
            f"At its highest degree the new model agrees with itself on {faithful:.0%} of "
            f"{len(images)} images only, so its bank seems not to be for it and the present one "
            "stays; name another bank, or lower min_agreement.",
            agreement=agreement,
        )
    return agreement


async def _classes(runner: Runner, images: Sequence[Tensor], r: int) -> list[int]:
    """The likeliest class of each image."""
    found: list[int] = []
    for start in range(0, len(images), CHUNK):
        try:
            outputs = (await runner.run(images[start : start + CHUNK], r)).outputs
        except ForwardFailed as error:
            raise ReloadFailed(f"The model failed at r={r}: {error.detail}") from error
        for output in outputs:
            if isinstance(output, Exception):
                raise ReloadFailed(f"The model failed on an image at r={r}: {output}")
            if len(output) != len(runner.labels):
                raise ReloadFailed(f"{len(output)} scores for {len(runner.labels)} labels")
            found.append(int(np.argmax(output)))
    return found


def random_images(count: int, size: tuple[int, int]) -> list[Tensor]:
    """Smooth random images, the same each time: uint8 `(3, H, W)`."""
    if not count:
        return []
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, COARSE, COARSE, generator=generator)
    smooth = interpolate(coarse, size, mode="bicubic", align_corners=False).clamp(0, 1)
    return list((smooth * 255).round().to(torch.uint8))


def _fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image prepared for another model, in this one's size; good enough to try it."""
    pixels = image[None].float()
    fitted = interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return fitted[0].round().clamp(0, 255).to(torch.uint8)


def _share(some: Sequence[int], others: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(some)
