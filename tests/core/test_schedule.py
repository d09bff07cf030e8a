"""Schedules and the arithmetic that they save."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.core import zoo
from tocom_core import CompressedViT
from tocom_core.errors import ScheduleError
from tocom_core.schedule import (
    arithmetic_ratio,
    count_macs,
    patch_counts,
    removable,
    resolve_schedule,
)


def test_one_int_counts_for_every_block() -> None:
    """An int becomes one value per block; a sequence stays as it is."""
    assert resolve_schedule(3, 4) == (3, 3, 3, 3)
    assert resolve_schedule([1, 0, 2], 3) == (1, 0, 2)
    assert resolve_schedule((), 0) == ()


@pytest.mark.parametrize(
    ("r", "message"),
    [
        (-2, "-2"),
        ([1, 2], "2 values but the model has 3 blocks"),
        ([1, 2, -3], "-3"),
        ([1, 2, 3.0], "3.0"),
        ([1, 2, True], "True"),
        (True, "True"),
        (2.0, "2.0"),
        ("123", "'1'"),
        (None, "None"),
    ],
)
def test_bad_schedules_are_refused(r: object, message: str) -> None:
    """The error names the wrong value; it is a ValueError too."""
    with pytest.raises(ScheduleError, match=message) as caught:
        resolve_schedule(r, 3)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


def test_merging_removes_at_most_half_and_pruning_all_but_one() -> None:
    """``removable`` cuts r to what the method can take out."""
    assert [removable(9, r) for r in (0, 3, 4, 5, 99)] == [0, 3, 4, 4, 4]
    assert [removable(9, r, "prune") for r in (0, 5, 8, 9, 99)] == [0, 5, 8, 8, 8]
    assert removable(1, 5) == removable(1, 5, "prune") == removable(0, 5, "prune") == 0


def test_patch_counts_before_and_after_each_block() -> None:
    """Attention sees the tokens before, the MLP those after merging."""
    assert list(patch_counts(10, [4, 4, 0, 9])) == [(10, 6), (6, 3), (3, 3), (3, 2)]
    assert list(patch_counts(10, [4, 9], "prune")) == [(10, 6), (6, 1)]


@pytest.fixture(scope="module")
def vit_base() -> CompressedViT:
    """ViT-B/16 at 224; its weights are never filled in."""
    with torch.device("meta"):
        return CompressedViT(timm.create_model("vit_base_patch16_224"))


@pytest.mark.parametrize(("r", "ratio"), [(8, 1.34), (12, 1.62), (16, 2.02)])
def test_arithmetic_ratio_of_vit_base(vit_base: CompressedViT, r: int, ratio: float) -> None:
    """ViT-B/16 at 224 pixels saves what the paper's table says."""
    assert arithmetic_ratio(vit_base, r) == pytest.approx(ratio, abs=0.03)


def test_arithmetic_ratio_starts_at_one_and_grows(vit_base: CompressedViT) -> None:
    """r=0 saves nothing, and each further token saves more, until nothing more can go."""
    ratios = [arithmetic_ratio(vit_base, r) for r in range(vit_base.max_r + 1)]
    assert ratios[0] == 1.0
    assert ratios == sorted(ratios)
    assert arithmetic_ratio(vit_base, vit_base.max_r + 5) == ratios[-1]


@pytest.mark.parametrize("method", ["merge", "prune"])
@pytest.mark.parametrize(
    "name", ["test_vit", "vit_tiny", "vit_mini_conv4_32", "three_prefix_tokens"]
)
@torch.inference_mode()
def test_counted_arithmetic_is_what_runs(name: str, method: str) -> None:
    """The formula agrees with PyTorch's own counter over a forward pass, matching left out."""
    if name in zoo.WITHOUT_CLASS_TOKEN and method == "prune":
        pytest.skip("pruning needs a class token")
    vit = zoo.build(name)
    model = CompressedViT(vit, method)  # type: ignore[arg-type]
    for r in (0, 2, [3, 0, 1]):
        with FlopCounterMode(display=False) as counter:
            model(zoo.photos(vit, 1), r)
        counted = counter.get_total_flops() / 2
        assert count_macs(model.shape, r, model.method) == pytest.approx(counted, rel=0.01)


def test_a_stem_costs_the_same_at_every_degree() -> None:
    """What no degree changes keeps the ratio below that of the blocks alone."""
    model = CompressedViT(zoo.build("vit_mini_conv4_32"))
    assert model.shape.stem_macs > 0
    blocks = count_macs(model.shape, 0) - model.shape.stem_macs
    saved = count_macs(model.shape, 4) - model.shape.stem_macs
    assert 1 < arithmetic_ratio(model, 4) < blocks / saved
