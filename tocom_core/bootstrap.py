"""How sure a mean over images is: the paired bootstrap.

The images are drawn anew, with replacement, a few thousand times, and every figure of every variant
is averaged over the same draws.  So any sum, difference or ratio of means has its interval from the
same draws, and what two variants have in common cancels out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 2000
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory: 8 bytes each, three times over
_TINY = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """``[mean, low, high]``, for JSON."""
        return [self.mean, self.low, self.high]


@dataclass(frozen=True)
class Estimate:
    """A figure over all images, and the same over each resampled set of images.

    Attributes:
        value: over all images.
        samples: ``(R,)`` float64, over each set.
    """

    value: float
    samples: NDArray[np.float64]

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.samples - other.samples)

    def share_of(self, whole: "Estimate") -> "Estimate | None":
        """This figure as a share of ``whole``; ``None`` unless ``whole`` is surely above 0.

        "Surely": its 95 % interval is.  Else the ratio is that of noise to noise.
        """
        if whole.interval().low <= _TINY:
            return None
        return Estimate(self.value / whole.value, self.samples / np.maximum(whole.samples, _TINY))

    def interval(self) -> Interval:
        """Mean and percentiles 2.5 and 97.5."""
        low, high = np.quantile(self.samples, [0.025, 0.975])
        return Interval(self.value, float(low), float(high))


def estimates(
    figures: Iterable[Tensor], resamples: int = RESAMPLES, seed: int = 0
) -> list[Estimate]:
    """Means of per-image figures, resampled together.

    Args:
        figures: each ``(N,)``, of the same images in the same order; any real dtype or bool.
        resamples: sets of images to draw.
        seed: of the draws; the same seed and ``N`` give the same draws.

    Returns:
        one estimate per figure.
    """
    table = np.stack([figure.double().numpy() for figure in figures], axis=1)
    samples = _resampled_means(table, resamples, np.random.default_rng(seed))
    means = table.mean(axis=0)
    return [Estimate(float(means[i]), samples[:, i]) for i in range(table.shape[1])]


def paired_bootstrap(difference: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of per-image differences with its 95 % interval.

    Args:
        difference: ``(N,)`` figure of one variant minus that of the other, image by image.
        resamples: sets of images to draw.
        seed: of the draws.
    """
    return estimates([difference], resamples, seed)[0].interval()


def _resampled_means(
    table: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of the columns over drawn rows: ``(N, F)`` to ``(R, F)``.

    A draw is the vector of how often each image was taken, so that a block of draws is one matrix
    product for all figures at once.
    """
    images = len(table)
    block = max(1, _DRAWS_AT_ONCE // images)
    means = []
    for first in range(0, resamples, block):
        draws = min(block, resamples - first)
        taken = generator.integers(0, images, (draws, images))
        taken += np.arange(draws)[:, np.newaxis] * images
        counts = np.bincount(taken.ravel(), minlength=draws * images).reshape(draws, images)
        means.append(counts.astype(np.float64) @ table / images)
    return np.concatenate(means)
