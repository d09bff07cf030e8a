"""What merged where: for one image, which patches each token of the last layer stands for.

The forward pass itself is asked. A model that shares all modules with the one that is served keeps
each layer's matching on its way; undoing them from the last layer to the first gives every patch
the number of the token that it ended in.  Nothing is estimated, and the ordinary forward pass does
not know of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tocom_core.attention import Attended
from tocom_core.compressed_vit import CompressedViT
from tocom_core.merging import Matching

DROPPED = -1
"""The group of a patch that was pruned."""

_LINE = (255, 255, 255)
_DROPPED_SHADE = 0.25


@dataclass(frozen=True)
class Layer:
    """The tokens behind one block.

    Attributes:
        tokens: patch tokens that are left.
        groups: one number per patch, row by row, from 0 in the order of each group's first patch;
            patches with the same number are one token; ``DROPPED`` where pruning removed it.
    """

    tokens: int
    groups: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many patches each group has."""
        kept = [group for group in self.groups if group != DROPPED]
        return tuple(np.bincount(kept, minlength=self.tokens).tolist())


@dataclass(frozen=True)
class MergeMap:
    """What merged where in one image.

    Attributes:
        grid: patches per column and per row: height, width.
        r: the degree.
        layers: one per block, first to last.
    """

    grid: tuple[int, int]
    r: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Step:
    """What one block did to the tokens of one image.

    Attributes:
        tokens: how many there are behind it, prefix included.
        undo: int64, one value per token behind it, to one value per token before it; ``DROPPED``
            for tokens that are gone.
    """

    tokens: int
    undo: Callable[[Tensor], Tensor]


def merge_map(model: CompressedViT, image: Tensor, r: int) -> MergeMap:
    """Run one image through the model and record what merges.

    Args:
        model: its weights should be those for ``r``.
        image: ``(1, 3, H, W)``, normalised, on the model's device and in its dtype.
        r: tokens to remove per block.

    Raises:
        ScheduleError: ``r`` is no degree.
    """
    height, width = model.vit.patch_embed.grid_size
    prefix = int(model.vit.num_prefix_tokens)
    steps = record(model, image, r)
    places = [places_after(steps[: n + 1])[prefix:] for n in range(len(steps))]
    if not steps:
        places = [torch.arange(model.num_patches)] * model.depth
    return MergeMap((int(height), int(width)), r, tuple(_layer(one) for one in places))


def record(model: CompressedViT, image: Tensor, r: int) -> list[Step]:
    """What each block did to the tokens of one image, first to last; nothing at ``r=0``."""
    if r == 0:
        return []
    recorder = _Recorder(model)
    with torch.inference_mode():
        recorder.forward_features(image, r)
    return recorder.steps


def places_after(steps: Sequence[Step]) -> Tensor:
    """Where each token of the start is after some steps, at least one.

    Returns:
        int64 ``(N,)``, prefix included: its position behind the last step, or ``DROPPED``.
    """
    places = torch.arange(steps[-1].tokens)
    for step in reversed(steps):
        places = step.undo(places)
    return places


def picture(image: Image.Image, layer: Layer, grid: tuple[int, int], scale: int = 2) -> Image.Image:
    """Draw a layer's groups over the model's input: each in its mean colour, outlined.

    Args:
        image: RGB, what the model saw.
        layer: of that image.
        grid: patches per column and per row.
        scale: how many times larger the drawing is.

    Returns:
        RGB.
    """
    size = (image.width * scale, image.height * scale)
    groups = np.asarray(layer.groups).reshape(grid)
    numbers = Image.fromarray((groups + 1).astype(np.int32))
    large = np.asarray(numbers.resize(size, Image.Resampling.NEAREST))
    smooth = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, dtype=np.float64)
    flat, owner = pixels.reshape(-1, 3), large.reshape(-1)
    count = np.bincount(owner, minlength=layer.tokens + 1)
    sums = [np.bincount(owner, flat[:, c], layer.tokens + 1) for c in range(3)]
    mean = np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]
    drawn = mean[owner].reshape(pixels.shape)
    dropped = large == 0
    drawn[dropped] = pixels[dropped] * _DROPPED_SHADE
    drawn[_borders(large)] = _LINE
    return Image.fromarray(np.rint(drawn).astype(np.uint8))


class _Recorder(CompressedViT):
    """The same modules as another model, and a note of what each block did to one image."""

    def __init__(self, model: CompressedViT) -> None:
        nn.Module.__init__(self)  # what the model was checked for holds for its own modules
        self.vit, self.method, self.prop_attn = model.vit, model.method, model.prop_attn
        self.attention = model.attention
        self.steps: list[Step] = []

    def _match(self, key: Tensor, removed: int) -> Matching:
        matching = super()._match(key, removed)
        self.steps.append(Step(key.shape[2] - matching.removed, partial(_unmerge, matching)))
        return matching

    def _remove(
        self, attended: Attended, scale: float, x: Tensor, size: Tensor | None, removed: int
    ) -> tuple[Tensor, Tensor | None]:
        if self.method == "prune":
            # The positions go the way of the tokens; float64 holds them exactly.
            positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float64)
            kept, _ = super()._remove(attended, scale, positions.view(1, -1, 1), None, removed)
            index = kept.view(-1).long().cpu()
            self.steps.append(Step(len(index), partial(_unprune, index, x.shape[1])))
        return super()._remove(attended, scale, x, size, removed)


def _unmerge(matching: Matching, places: Tensor) -> Tensor:
    """Every token has the place of the one that it was merged into."""
    device = places.device if matching.rows is None else matching.rows.device
    return matching.unmerge(places.to(device).view(1, -1, 1)).view(-1).cpu()


def _unprune(kept: Tensor, tokens: int, places: Tensor) -> Tensor:
    """Tokens that were not kept have no place."""
    before = places.new_full((tokens,), DROPPED)
    before[kept] = places
    return before


def _layer(places: Tensor) -> Layer:
    """Number the groups by their first patch."""
    values = places.cpu().numpy()
    kept = values[values != DROPPED]
    found, first = np.unique(kept, return_index=True)
    number = {int(found[n]): rank for rank, n in enumerate(np.argsort(first))}
    number[DROPPED] = DROPPED
    return Layer(len(found), tuple(number[int(value)] for value in values))


def _borders(owner: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pixels whose right or lower neighbour belongs to another group."""
    edge = np.zeros(owner.shape, dtype=bool)
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edge[:-1] |= owner[:-1] != owner[1:]
    return edge
