"""The architecture of a checkpoint that does not say it, read off the shapes of its weights.

Research code (DeiT, MAE and what was built on them) saves bare weights, named as timm names them.
All sizes can be read off but one: the number of heads. That is known for the widths and depths that
have a name (tiny to huge), and has to be told for others.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor

Weights = dict[str, Tensor]

_SIZES = {
    (192, 12): ("tiny", 3),
    (384, 12): ("small", 6),
    (768, 12): ("base", 12),
    (1024, 24): ("large", 16),
    (1280, 32): ("huge", 16),
}
"""Width and depth to name and heads."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_GAMMA = re.compile(r"(blocks\.\d+\.)gamma_([12])$")


class Ambiguous(Exception):
    """The shapes do not say which architecture it is; the text says what is missing."""


def clean(state: Weights) -> Weights:
    """Rename DeiT III's layer scales as timm does; leave out the decoder of MAE's pre-training."""
    pretrained = "mask_token" in state and any(name.startswith("decoder_") for name in state)
    return {
        _GAMMA.sub(r"\1ls\2.gamma", name): value
        for name, value in state.items()
        if not (pretrained and (name == "mask_token" or name.startswith("decoder_")))
    }


def pooling(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """MAE's fine-tunes that pool the patches have their last norm behind the pooling."""
    pooled = "fc_norm.weight" in state and "norm.weight" not in state
    return {"global_pool": "avg"} if pooled else {}


def infer_architecture(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Read an architecture off the shapes of a checkpoint, after ``clean``.

    Returns:
        timm's name, and the arguments with which it has exactly these weights.

    Raises:
        Ambiguous: they are not those of a plain ViT, or leave the number of heads open.
    """
    patches = state.get("patch_embed.proj.weight")
    fc1 = state.get("blocks.0.mlp.fc1.weight")
    if patches is None or patches.ndim != 4 or fc1 is None or fc1.ndim != 2:
        raise Ambiguous("its weights are not those of a plain Vision Transformer")
    width, patch = int(patches.shape[0]), [int(side) for side in patches.shape[2:]]
    depth = 1 + max(int(found[1]) for found in map(_BLOCK.match, state) if found)
    if (width, depth) not in _SIZES:
        raise Ambiguous(
            f"width {width} and depth {depth} leave the number of heads open (known are "
            f"{', '.join(f'{w} x {d}' for w, d in _SIZES)})"
        )
    size, heads = _SIZES[width, depth]
    image, embeds_prefix = _image(state, patch)
    arguments = {
        "img_size": image,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": int(fc1.shape[0]) / width,
        "no_embed_class": not embeds_prefix,
        **_parts(state),
    }
    family, middle = ("deit", "_distilled") if "dist_token" in state else ("vit", "")
    exact = f"{family}_{size}{middle}_patch{patch[0]}_{image[0]}"
    name = exact if timm.is_model(exact) else f"{family}_base{middle}_patch16_224"
    return name, arguments


def _parts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a model has beside its sizes: biases, norms, tokens, pooling, layer scale."""
    parts: dict[str, Any] = {
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "class_token": "cls_token" in state,
        "global_pool": "token" if "cls_token" in state else "avg",
        **pooling(state),
    }
    if "blocks.0.ls1.gamma" in state:
        parts["init_values"] = 1e-6
    if "reg_token" in state:
        parts["reg_tokens"] = int(state["reg_token"].shape[1])
    return parts


def _image(state: Mapping[str, Tensor], patch: list[int]) -> tuple[list[int], bool]:
    """The size of a square input, and whether tokens in front have positions of their own."""
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3:
        raise Ambiguous("it has no position embeddings, which would tell the size of its images")
    tokens = int(positions.shape[1])
    prefix = sum(int(state[name].shape[1]) for name in _PREFIX_TOKENS if name in state)
    # Only DeiT III leaves the tokens in front without positions. Without layer scale, one more than
    # an oblong image's patches would be taken for the square of a model like that.
    for embedded in (prefix, 0) if "blocks.0.ls1.gamma" in state else (prefix,):
        side = math.isqrt(tokens - embedded)
        if side * side == tokens - embedded:
            return [side * patch[0], side * patch[1]], embedded == prefix
    raise Ambiguous(f"its {tokens} position embeddings are of no square image")


_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
