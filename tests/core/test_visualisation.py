"""What merged where, against the naive reference that keeps lists of patches."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.core import reference, zoo
from tocom_core import CompressedViT
from tocom_core.visualisation import DROPPED, Layer, merge_map, picture, places_after, record

DEGREES = (1, 3, 1000)


class TrackingViT(reference.ReferenceViT):
    """The reference, and after each block the positions at the start that each token stands for."""

    def track(self, image: Tensor, r: int) -> list[list[list[int]]]:
        """Run one image ``(1, 3, H, W)``."""
        self.history: list[list[list[int]]] = []
        outcome = self(image, r)
        assert outcome.margin > 1e-6, "the input holds a near-tie; choose another seed"
        return self.history

    def _remove(self, attended, x, size, r):
        members = self.history[-1] if self.history else [[n] for n in range(len(x))]
        after = super()._remove(attended, x, size, r)
        if self._method == "prune":
            kept = [n for n, token in enumerate(x) if any(token is other for other in after[0])]
            self.history.append([members[n] for n in kept])
            return after
        prefix = self._vit.num_prefix_tokens
        pairs = reference.match(reference.mean_over_heads(attended.key), r, prefix)
        kept = reference.order_after(pairs, len(x), prefix)
        joined = [[m for a, b in pairs.items() if b == n for m in members[a]] for n in kept]
        self.history.append([members[n] + more for n, more in zip(kept, joined, strict=True)])
        return after


@pytest.mark.parametrize("r", DEGREES)
@pytest.mark.parametrize("name", zoo.COVERED)
def test_groups_are_those_of_the_reference(name: str, r: int) -> None:
    """Behind every block the patches are parted as the reference parts them."""
    vit = zoo.build(name)
    image, prefix = zoo.photos(vit, 1), vit.num_prefix_tokens
    found = merge_map(CompressedViT(vit), image, r)
    expected = TrackingViT(vit).track(image, r)

    assert found.r == r
    assert found.grid[0] * found.grid[1] == len(found.layers[0].groups)
    assert len(found.layers) == len(expected) == len(vit.blocks)
    for layer, members in zip(found.layers, expected, strict=True):
        parts = {frozenset(n - prefix for n in group) for group in members[prefix:]}
        assert as_parts(layer) == parts
        assert layer.tokens == len(parts)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_medium_reg4_gap", "max_pool", "not_square"])
def test_sizes_are_those_of_the_forward_pass(name: str) -> None:
    """Group sizes sum to the number of patches, and are the sizes that the model weighs with."""
    vit = zoo.build(name)
    model, image = CompressedViT(vit), zoo.photos(vit, 1)
    layer = merge_map(model, image, 3).layers[-1]
    _, size = model.forward_features(image, 3)
    assert size is not None

    assert sum(layer.sizes) == model.num_patches
    assert sorted(layer.sizes) == sorted(size[0, vit.num_prefix_tokens :, 0].int().tolist())


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "vit_medium_reg4_gap", "test_vit"])
def test_prefix_tokens_stay_where_they_are(name: str) -> None:
    """Class, distillation and register tokens are never part of a group."""
    vit = zoo.build(name)
    steps = record(CompressedViT(vit), zoo.photos(vit, 1), 1000)
    prefix = vit.num_prefix_tokens
    places = places_after(steps)
    assert places[:prefix].tolist() == list(range(prefix))
    assert int(places[prefix:].min()) >= prefix


@pytest.mark.parametrize("r", DEGREES)
@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled", "three_prefix_tokens"])
def test_pruned_patches_are_told(name: str, r: int) -> None:
    """With pruning, each patch is alone or gone, as in the reference."""
    vit = zoo.build(name)
    image, prefix = zoo.photos(vit, 1), vit.num_prefix_tokens
    found = merge_map(CompressedViT(vit, "prune"), image, r)
    for layer, members in zip(found.layers, TrackingViT(vit, "prune").track(image, r), strict=True):
        kept = [group[0] - prefix for group in members[prefix:]]
        assert [n for n, group in enumerate(layer.groups) if group != DROPPED] == kept
        assert layer.sizes == (1,) * len(kept)


def test_without_merging_every_patch_is_alone() -> None:
    """At r=0 nothing happens, in no layer."""
    vit = zoo.build("test_vit")
    found = merge_map(CompressedViT(vit), zoo.photos(vit, 1), 0)
    count = found.grid[0] * found.grid[1]
    assert [layer.groups for layer in found.layers] == [tuple(range(count))] * len(vit.blocks)
    assert found.layers[-1].sizes == (1,) * count


def test_recording_leaves_the_model_alone() -> None:
    """The model's answer is the same bits before and after, and it has no more parameters."""
    vit = zoo.build("vit_tiny")
    model, image = CompressedViT(vit).eval(), zoo.photos(vit, 1)
    names = [name for name, _ in model.named_modules()]
    with torch.inference_mode():
        before = model(image, 3)
        merge_map(model, image, 3)
        assert torch.equal(model(image, 3), before)
    assert [name for name, _ in model.named_modules()] == names
    assert not model.training


def test_groups_are_numbered_by_their_first_patch() -> None:
    """Reading row by row, new groups get the next number: the same picture, the same numbers."""
    vit = zoo.build("vit_tiny")
    groups = merge_map(CompressedViT(vit), zoo.photos(vit, 1), 3).layers[-1].groups
    assert list(dict.fromkeys(groups)) == list(range(max(groups) + 1))


def test_picture_shows_mean_colours() -> None:
    """A group has the mean colour of its pixels; pruned patches are dark; borders are lines."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :2], pixels[:, 2:4], pixels[:, 4:6], pixels[:, 6:] = 40, 80, 200, 100
    layer = Layer(2, (0, 0, 1, DROPPED))
    drawn = np.asarray(picture(Image.fromarray(pixels), layer, (1, 4), scale=1))
    assert drawn[0, :3].tolist() == [[60] * 3] * 3
    assert drawn[0, 3].tolist() == [255] * 3
    assert drawn[0, 4].tolist() == [200] * 3
    assert drawn[0, 6].tolist() == [25] * 3


def as_parts(layer: Layer) -> set[frozenset[int]]:
    """The groups as sets of patches."""
    parts: dict[int, set[int]] = {}
    for patch, group in enumerate(layer.groups):
        parts.setdefault(group, set()).add(patch)
    return {frozenset(part) for part in parts.values()}
