"""CompressedViT against plain timm at r=0 and against the float64 reference above it."""

import pytest
import torch
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from tests.core import zoo
from tests.core.reference import ReferenceViT
from tocom_core import CompressedViT
from tocom_core.errors import ScheduleError, UnsupportedModelError
from tocom_core.schedule import Method

# More than all patches of every model: each block merges as much as it can.
EVERYTHING = 1000


def tolerance(expected: Tensor, relative: float = 1e-5) -> float:
    """The bound of the contract: relative to the largest logit, or absolute below 1."""
    return relative * max(1.0, float(expected.abs().max()))


def assert_close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Equal within ``relative × max(1, max |expected|)``."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance(expected, relative)


@pytest.mark.parametrize("name", zoo.COVERED)
@torch.inference_mode()
def test_r0_is_plain_timm(name: str) -> None:
    """At r=0 both the public forward and the own block loop give timm's logits."""
    vit = zoo.build(name)
    model, images = CompressedViT(vit), zoo.photos(vit, 3)
    expected = vit(images)

    assert_close(model(images), expected)
    assert_close(model(images, r=[0] * model.depth), expected)
    assert_close(model.forward_head(*model.forward_features(images, 0)), expected)


@pytest.mark.parametrize("prop_attn", [True, False], ids=["prop_attn", "plain_attn"])
@pytest.mark.parametrize("name", zoo.COVERED)
@torch.inference_mode()
def test_r_above_0_is_the_reference(name: str, prop_attn: bool) -> None:
    """Merging gives the float64 reference's logits, in float32 and, to many digits, in float64."""
    vit = zoo.build(name)
    images = zoo.photos(vit)
    reference = ReferenceViT(vit, prop_attn=prop_attn)
    for r in (2, EVERYTHING, [3, 0, 2]):
        expected = reference(images, r)
        assert expected.margin > 1e-6, "the input holds a near-tie; choose another seed"
        in_float32 = CompressedViT(vit, prop_attn=prop_attn)(images, r)
        assert_close(in_float32.double(), expected.logits, 1e-4)

    exact = CompressedViT(vit.double(), prop_attn=prop_attn)(images.double(), 2)
    assert_close(exact, reference(images, 2).logits, 1e-10)


@pytest.mark.parametrize("name", [n for n in zoo.COVERED if n not in zoo.WITHOUT_CLASS_TOKEN])
@torch.inference_mode()
def test_pruning_is_the_reference(name: str) -> None:
    """Pruning gives the float64 reference's logits."""
    vit = zoo.build(name)
    images = zoo.photos(vit)
    reference = ReferenceViT(vit, "prune", prop_attn=False)
    for r in (2, EVERYTHING, [3, 0, 2]):
        expected = reference(images, r)
        assert expected.margin > 1e-7, "the input holds a near-tie; choose another seed"
        assert_close(CompressedViT(vit, "prune")(images, r).double(), expected.logits, 1e-4)


@pytest.mark.parametrize("size", [(48, 80), (96, 96), (16, 32)], ids=str)
@torch.inference_mode()
def test_another_image_size(size: tuple[int, int]) -> None:
    """A model with dynamic_img_size takes any image size, at every degree."""
    vit = zoo.build("test_vit")
    model = CompressedViT(vit)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    assert_close(model.forward_head(*model.forward_features(images, 0)), vit(images))
    expected = ReferenceViT(vit)(images, 2)
    assert expected.margin > 1e-6
    assert_close(model(images, 2).double(), expected.logits, 1e-4)


@torch.inference_mode()
def test_sizes_count_all_patches() -> None:
    """However much merges, the sizes of the patch tokens sum to the number of patches."""
    vit = zoo.build("test_vit2")
    model = CompressedViT(vit)
    for r in (1, 3, EVERYTHING):
        x, size = model.forward_features(zoo.photos(vit, 3), r)
        assert size is not None
        assert x.shape[:2] == size.shape[:2]
        assert torch.equal(size[:, 1:].sum(dim=1), torch.full((3, 1), float(model.num_patches)))
        assert torch.equal(size[:, :1], torch.ones(3, 1, 1))


@torch.inference_mode()
def test_token_counts_follow_the_schedule() -> None:
    """Each block removes its r, but never more than half of the patches (pruning: all but one)."""
    vit = zoo.build("vit_tiny")  # 25 patches, one prefix token, 3 blocks
    images = zoo.photos(vit, 1)

    def left(method: Method, r: int | list[int]) -> int:
        model = CompressedViT(vit, method)
        return model.forward_features(images, r)[0].shape[1] - 1

    assert left("merge", 4) == 13
    assert left("merge", [12, 0, 1]) == 12
    assert left("merge", EVERYTHING) == 4  # 25, 13, 7, 4
    assert left("prune", 4) == 13
    assert left("prune", EVERYTHING) == 1


@torch.inference_mode()
def test_max_r_is_the_last_degree_that_changes_anything() -> None:
    """Beyond ``max_r`` the logits stay as they are; one below it they differ."""
    vit = zoo.build("test_vit")
    images = zoo.photos(vit)
    methods: tuple[Method, ...] = ("merge", "prune")
    for method in methods:
        model = CompressedViT(vit, method)
        assert torch.equal(model(images, model.max_r), model(images, EVERYTHING))
        assert not torch.equal(model(images, model.max_r - 1), model(images, model.max_r))


@torch.inference_mode()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    """An image's logits do not depend on what it is batched with."""
    vit = zoo.build("test_vit")
    model, images = CompressedViT(vit), zoo.photos(vit, 4)
    together = model(images, 3)
    alone = torch.cat([model(image.unsqueeze(0), 3) for image in images])
    assert_close(together, alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_half_precision(dtype: torch.dtype) -> None:
    """Every pooling works in half precision, and stays near the float32 logits."""
    for name in ("test_vit", "test_vit2", "test_vit3", "max_pool", "avgmax_pool", "qk_norm"):
        vit = zoo.build(name)
        images = zoo.photos(vit)
        expected = CompressedViT(vit)(images, 0)
        logits = CompressedViT(vit.to(dtype))(images.to(dtype), 2)
        assert logits.dtype == dtype
        # Another pair may merge here; what is asked for is no worse than merging itself costs.
        assert_close(logits.float(), expected, 1.0)
        assert torch.isfinite(logits).all()


def test_gradients_reach_every_parameter() -> None:
    """Training at r > 0 reaches the parameters that training at r=0 reaches."""
    vit = zoo.build("vit_mini_conv4_32").train()
    CompressedViT(vit)(zoo.photos(vit), 4).sum().backward()
    without = [name for name, p in vit.named_parameters() if p.grad is None]
    assert without == []


def test_wraps_without_copying() -> None:
    """The wrapped model's parameters are the live ones, under their own names."""
    vit = zoo.build("test_vit")
    before = {name: p.data_ptr() for name, p in vit.named_parameters()}
    model = CompressedViT(vit)
    assert {n: p.data_ptr() for n, p in model.vit.named_parameters()} == before

    images = zoo.photos(vit)
    with torch.inference_mode():
        old = model(images, 2)
        vit.head.bias.add_(1.0)
        assert_close(model(images, 2), old + 1.0)


@torch.inference_mode()
def test_plain_forward_stays_plain() -> None:
    """Wrapping and running at r > 0 leaves ``vit(x)`` as timm has it."""
    vit = zoo.build("test_vit3")
    images = zoo.photos(vit)
    expected = vit(images)
    CompressedViT(vit)(images, 3)
    assert torch.equal(vit(images), expected)


@pytest.mark.parametrize("r", [-1, [0, 0], [0, -1, 0], 1.5, "2", True, None], ids=repr)
def test_bad_r_is_refused(r: object) -> None:
    """A value that is no schedule raises ScheduleError before anything is computed."""
    vit = zoo.build("test_vit")
    with pytest.raises(ScheduleError):
        CompressedViT(vit)(zoo.photos(vit), r)


def _with_pos_embedded_pool() -> VisionTransformer:
    vit = zoo.build("map_pool_with_class_token")
    vit.attn_pool.pos_embed = nn.Parameter(torch.zeros(17, 32))
    return vit


def _with_foreign_attention() -> VisionTransformer:
    vit = zoo.build("three_prefix_tokens")
    vit.blocks[1].attn = zoo.GatedAttention(32, num_heads=2)
    return vit


UNSUPPORTED = {
    "parallel scaling": (zoo.plain(block_fn=ParallelScalingBlock), "ParallelScalingBlock"),
    "vit_base_xp": (zoo.named("vit_base_patch16_xp_224", **zoo.SMALL), "ParallelScalingBlock"),
    "diff parallel": (zoo.plain(block_fn=DiffParallelScalingBlock), "DiffParallelScalingBlock"),
    "parallel things": (zoo.plain(block_fn=ParallelThingsBlock), "ParallelThingsBlock"),
    "differential attention": (zoo.plain(attn_layer="diff"), "DiffAttention"),
    "changed attention": (_with_foreign_attention, "block 1 uses GatedAttention"),
    "patch dropout": (zoo.plain(patch_drop_rate=0.1), "patch_drop_rate"),
    "prr pooling": (zoo.plain(global_pool="prr"), "AttentionPoolPrr"),
    "positions in pooling": (_with_pos_embedded_pool, "position embeddings"),
    "swin": (zoo.named("swin_tiny_patch4_window7_224", embed_dim=24), "SwinTransformer"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_models_are_refused_with_the_reason(kind: str) -> None:
    """Wrapping a model that the method does not cover names what it is that is not covered."""
    build, reason = UNSUPPORTED[kind]
    with pytest.raises(UnsupportedModelError, match=reason):
        CompressedViT(build())


def test_pruning_needs_a_class_token() -> None:
    """Without a class token there is nothing to rank patches by, registers or not."""
    for name in ("max_pool", "test_vit2"):
        with pytest.raises(UnsupportedModelError, match="class token"):
            CompressedViT(zoo.build(name), "prune")


def test_unknown_method_is_refused() -> None:
    """A method that does not exist is named, with those that do."""
    with pytest.raises(UnsupportedModelError, match=r"'fuse'.*'merge' or 'prune'"):
        CompressedViT(zoo.build("test_vit"), "fuse")  # type: ignore[arg-type]
