"""The one architecture of our own: the embedded default model's, registered with timm.

Small pictures need a small model, and timm has no ViT for 32 x 32 pixels with a convolutional stem,
which learns far faster from scratch than a patch projection.  All parts are timm's.
"""

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed

__all__ = ["vit_mini_conv4_32"]

default_cfgs = generate_default_cfgs(
    {
        "vit_mini_conv4_32.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "patch_embed.backbone.0.conv",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def vit_mini_conv4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT with 64 patches, 5 blocks of width 128, behind a three-layer convolutional stem."""
    stem = ConvStem(channels=(32, 64, 128), stride=(1, 2, 2), kernel_size=3, padding=1)
    arguments = {
        "img_size": 32,
        "patch_size": 1,
        "embed_dim": 128,
        "depth": 5,
        "num_heads": 4,
        "embed_layer": partial(HybridEmbed, backbone=stem, proj=False),
    }
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer, "vit_mini_conv4_32", pretrained, **{**arguments, **kwargs}
    )
    return model
