"""Images of which half precision must choose the same pairs of tokens as float64 does.

Which tokens merge is a choice, and where two similarities are closer than a precision can tell,
either is right, and the scores differ by more than any tolerance. So images are drawn, and those
are used of which the reference says that no choice was close.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.core import zoo
from tests.core.recorder import uint8_images
from tests.core.reference import ReferenceViT
from tocom_core import CompressedViT
from tocom_core.pipeline import Pipeline
from tocom_core.pixels import Normalise

MEAN, STD = (0.5, 0.4, 0.6), (0.3, 0.25, 0.2)
SIZE = (3, 32, 32)
DEGREES = range(9)
"""All that the model has: of 16 patches 8 can merge at once."""
TOLERANCE = {"float32": 1e-5, "tf32": 3e-3, "float16": 3e-3, "bfloat16": 2e-2}
"""Largest difference of a probability from the float64 reference's."""
MARGIN = {"float32": 1e-5, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 1e-2}
"""How far apart similarities must lie for a choice that a precision has to get right."""
POOL = 24


@dataclass(frozen=True)
class Judged:
    """Images and what the reference says of them at one degree."""

    images: list[Tensor]
    probabilities: Tensor


def model() -> CompressedViT:
    """16 patches, 2 blocks of width 32; always the same weights."""
    vit = zoo.plain(depth=2, reg_tokens=1)()
    zoo.randomise(vit)
    return CompressedViT(vit.eval())


def judged(r: int, precision: str) -> Judged:
    """The images of a pool on which no choice is too close for the precision, with the answers."""
    kept = [(i, p) for i, p, margin in _pool(r) if margin > MARGIN[precision]]
    return Judged([i for i, _ in kept], torch.stack([p for _, p in kept]))


def worst(pipeline: Pipeline, r: int, precision: str, counts: tuple[int, ...]) -> float:
    """The largest difference from the reference, in batches of these sizes."""
    known = judged(r, precision)
    assert len(known.images) >= max(counts), f"r={r}: only {len(known.images)} images are clear"
    found = [
        pipeline.classify(known.images[:n], r).double() - known.probabilities[:n] for n in counts
    ]
    return max(float(difference.abs().max()) for difference in found)


def pipeline_for(
    vit: CompressedViT, device: torch.device, dtype: torch.dtype, **options: object
) -> Pipeline:
    """A pipeline of this model, which is moved to the device."""
    moved = vit.to(device, dtype).eval()
    normalise = Normalise(MEAN, STD, device, dtype)
    return Pipeline(moved, normalise, SIZE, 7, device, largest_batch=8, **options)  # type: ignore[arg-type]


@functools.cache
def _pool(r: int) -> list[tuple[Tensor, Tensor, float]]:
    """Images with the reference's probabilities and its closest choice."""
    reference = ReferenceViT(model().vit)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    found = []
    for image in uint8_images(POOL, SIZE, seed=5):
        outcome = reference(((image.double() / 255 - mean) / std).unsqueeze(0), r)
        found.append((image, outcome.logits[0].softmax(dim=-1), outcome.margin))
    return found
