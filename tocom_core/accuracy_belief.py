"""What to believe of measured accuracies: more compression cannot be expected to help.

A table from some hundred images is noisy: by chance it has a degree half a point above a lower one.
Taken at its word it tells a controller that compressing gains accuracy, and an oracle that the
model as its owner fine-tuned it is second choice. The belief is what fits the figures best, in the
sense of least squares, and nowhere rises from `r_source` on (isotonic regression).

Below `r_source` the figures stay as they are. There is less merging there but a larger distance
from what the model learned, so neither direction can be taken for granted.

Source: R. E. Barlow, D. J. Bartholomew, J. M. Bremner, H. D. Brunk, *Statistical Inference under
Order Restrictions* (1972), the pool-adjacent-violators algorithm.
"""

from collections.abc import Mapping


def believed_accuracy(
    measured: Mapping[int, float],
    r_source: int,
    images: Mapping[int, int] | None = None,
) -> dict[int, float]:
    """Return degree → accuracy, ascending, never rising from `r_source` on.

    Neighbours that stand the wrong way round get their common mean, until none do.

    Args:
        measured: degree → accuracy; any degrees may be missing.
        r_source: the degree that the model was fine-tuned at.
        images: degree → how many the figure stands on, its weight; None weighs all alike.
    """
    believed = {r: measured[r] for r in sorted(measured)}
    blocks: list[_Block] = []
    for r in (r for r in believed if r >= r_source):
        block = _Block([r], measured[r], 1 if images is None else images[r])
        while blocks and blocks[-1].mean < block.mean:
            block = blocks.pop().joined(block)
        blocks.append(block)
    for block in blocks:
        believed |= dict.fromkeys(block.degrees, block.mean)
    return believed


class _Block:
    """Neighbouring degrees that are believed to be equally accurate."""

    def __init__(self, degrees: list[int], mean: float, weight: float) -> None:
        self.degrees = degrees
        self.mean = mean
        self._weight = weight

    def joined(self, other: "_Block") -> "_Block":
        """Return both as one."""
        weight = self._weight + other._weight
        mean = self.mean + (other.mean - self.mean) * (other._weight / weight)
        return _Block(self.degrees + other.degrees, mean, weight)
