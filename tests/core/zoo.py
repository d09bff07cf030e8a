"""Small timm Vision Transformers of every kind that the method covers, without a download."""

import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tocom_core import architectures as _architectures  # noqa: F401 - registers with timm

TINY: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 7,
}


class GatedAttention(Attention):
    """Not timm's own class: a stand-in for attention that somebody changed."""


def named(name: str, **changes: Any) -> Callable[[], VisionTransformer]:
    """One of timm's registered architectures, made smaller."""
    return functools.partial(timm.create_model, name, **changes)


def plain(**changes: Any) -> Callable[[], VisionTransformer]:
    """A VisionTransformer built from its parts: 16 patches, 3 blocks of width 32."""
    return functools.partial(VisionTransformer, **{**TINY, **changes})


def gated() -> VisionTransformer:
    """Attention with an output gate, for which no registered architecture exists."""
    vit = VisionTransformer(**TINY)
    for block in vit.blocks:
        block.attn = Attention(32, num_heads=2, qkv_bias=True, gated=True)
    return vit


SMALL: dict[str, Any] = {"embed_dim": 48, "num_heads": 3, "depth": 3, "num_classes": 7}

# timm's own registered architectures: class, distillation and register tokens, average and
# attention pooling, layer scale, pre-norm, RMS norm, SwiGLU, no class position, sub-layer norms.
REGISTERED: dict[str, Callable[[], VisionTransformer]] = {
    "test_vit": named("test_vit", img_size=64, depth=3),
    "test_vit2": named("test_vit2", img_size=64, depth=3),
    "test_vit3": named("test_vit3", img_size=64, depth=3),
    "test_vit4": named("test_vit4", img_size=64, depth=3),
    "deit_tiny_distilled": named("deit_tiny_distilled_patch16_224", img_size=64, **SMALL),
    "vit_tiny": named("vit_tiny_patch16_224", img_size=80, **SMALL),
    "deit3_small": named("deit3_small_patch16_224", img_size=64, **SMALL),
    "vit_medium_reg4_gap": named("vit_medium_patch16_reg4_gap_256", img_size=64, **SMALL),
    "vit_base_siglip": named("vit_base_patch16_siglip_224", img_size=64, **SMALL),
    "vit_xsmall_clip": named("vit_xsmall_patch16_clip_224", img_size=64, **SMALL),
    "vit_giant_reg4_dinov2": named("vit_giant_patch14_reg4_dinov2", img_size=56, **SMALL),
    "beit3_base": named("beit3_base_patch16_224", img_size=64, **SMALL),
    "vit_mini_conv4_32": named("vit_mini_conv4_32", img_size=16, depth=3, num_classes=7),
}

ASSEMBLED: dict[str, Callable[[], VisionTransformer]] = {
    "qk_norm": plain(qk_norm=True),
    "gated": gated,
    "res_post_block": plain(block_fn=ResPostBlock, init_values=1e-2),
    "max_pool": plain(class_token=False, global_pool="max"),
    "avgmax_pool": plain(global_pool="avgmax", reg_tokens=1),
    "avg_pool_with_prefix": plain(global_pool="avg", reg_tokens=2, pool_include_prefix=True),
    "avg_pool_fc_norm_off": plain(global_pool="avg", class_token=False, fc_norm=False),
    "token_pool_fc_norm": plain(fc_norm=True),
    "map_pool_with_class_token": plain(global_pool="map", reg_tokens=1),
    "three_prefix_tokens": plain(reg_tokens=2),
    "no_position_embedding": plain(pos_embed="none"),
    "not_square": plain(img_size=(24, 40)),
    "one_row_of_patches": plain(img_size=(8, 40), class_token=False, global_pool="avg"),
    "no_qkv_bias": plain(qkv_bias=False, final_norm=False),
    "no_head": plain(num_classes=0),
    "no_pool": plain(global_pool="", num_classes=0),
}

COVERED = {**REGISTERED, **ASSEMBLED}
WITHOUT_CLASS_TOKEN = frozenset(
    {
        "test_vit2",
        "test_vit3",
        "test_vit4",
        "vit_medium_reg4_gap",
        "vit_base_siglip",
        "max_pool",
        "avg_pool_fc_norm_off",
        "one_row_of_patches",
    }
)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a value that matters.

    timm starts tokens, biases and layer scales at or near zero, where a mistake would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
                parameter.copy_(0.8 + 0.2 * noise)
            elif parameter.ndim >= 2 and name.endswith("weight"):
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise)


def build(name: str, seed: int = 0) -> VisionTransformer:
    """One of ``COVERED``, in eval mode, with random parameters that all matter."""
    vit = COVERED[name]()
    randomise(vit, seed)
    return vit.eval()


def photos(vit: VisionTransformer, count: int = 2, seed: int = 0) -> Tensor:
    """Random images ``(B, 3, H, W)`` of the model's own size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *vit.patch_embed.img_size, generator=generator)
