"""Turn a `transformers` image classifier into timm's `VisionTransformer`.

ViT, ViT-MSN and DeiT of `transformers` compute what timm's do, under other names and with query,
key and value apart. Their ``config.json`` says the sizes. So a checkpoint is renamed while it is
read, and the library itself is not needed. What differs in more than names is refused with the
reason.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from tocom_core.errors import CheckpointError, UnsupportedModelError
from tocom_core.transformers_images import Sides, default_preparation, preparation

Weights = dict[str, Tensor]

_TYPES = ("vit", "vit_msn", "deit")
_CLASSES = {
    "vit": ("ViTForImageClassification", "ViTModel"),
    "vit_msn": ("ViTMSNForImageClassification", "ViTMSNModel"),
    "deit": (
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "DeiTModel",
    ),
}
_REASONS = {
    "dinov2": "its classifier reads the class token and the mean of the patches side by side",
    "dinov2_with_registers": "its classifier reads the class token and the mean of the patches",
    "beit": "its attention has a relative position bias",
    "data2vec-vision": "its attention has a relative position bias",
    "swin": "it attends within windows, where there is nothing to merge",
    "swinv2": "it attends within windows, where there is nothing to merge",
    "vit_mae": "it is a pre-training model without a classifier; fine-tune it first",
}
# transformers' names of activations to timm's; None: timm's default.
_ACTIVATIONS = {
    "gelu": None,
    "gelu_python": None,
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
}
_SIZES = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base"} | {
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
}
"""Width, depth and heads that have a name in timm."""

_NAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    # The names inside of the library since version 5; its files have the ones above.
    (r"layers\.(\d+)\.attention\.q_proj\.", r"blocks.\1.attn.query."),
    (r"layers\.(\d+)\.attention\.k_proj\.", r"blocks.\1.attn.key."),
    (r"layers\.(\d+)\.attention\.v_proj\.", r"blocks.\1.attn.value."),
    (r"layers\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"layers\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"layers\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
)
_UNUSED = re.compile(r"pooler\.|embeddings\.mask_token$")
"""Parts that a classifier's logits do not depend on."""


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of `transformers`, and of no model that timm itself builds."""
    return "model_type" in config and "architecture" not in config


def convert(
    state: Weights, config: Mapping[str, Any], folder: Path
) -> tuple[Weights, dict[str, Any]]:
    """Rename a checkpoint for timm.

    Args:
        state: its tensors.
        config: its ``config.json``.
        folder: where it lies, with ``preprocessor_config.json``.

    Returns:
        The tensors as timm's `VisionTransformer` names them, and a config in timm's hub layout,
        with the epsilon of the norms under ``tocom``.

    Raises:
        UnsupportedModelError: timm's blocks do not compute that; the message says why.
        CheckpointError: the config is incomplete, or does not fit the weights.
    """
    kind = _check_kind(config, folder)
    _check_config(config, folder)
    renamed = _renamed(_without_prefix(state, kind))
    arguments, epsilon = _arguments(config, folder)
    distilled = "head_dist.weight" in renamed
    if "dist_token" in renamed and not distilled:
        # Without a head of its own it is a token that attends and is attended to, no more.
        renamed["reg_token"] = renamed.pop("dist_token")
        arguments["reg_tokens"] = 1
    image = tuple(arguments["img_size"])
    return _fused(renamed, arguments["depth"], folder), {
        "architecture": _architecture(arguments, distilled),
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, *image], **_images(kind, image, folder)},
        "id2label": config.get("id2label") if "head.weight" in renamed else None,
        "tocom": {"norm_eps": epsilon},
    }


def _arguments(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], float]:
    """What timm's ``create_model`` has to be given, and the epsilon of the norms."""
    try:
        width = int(config["hidden_size"])
        arguments: dict[str, Any] = {
            "img_size": list(_pair(config.get("image_size", 224))),
            "patch_size": list(_pair(config.get("patch_size", 16))),
            "embed_dim": width,
            "depth": int(config["num_hidden_layers"]),
            "num_heads": int(config["num_attention_heads"]),
            "mlp_ratio": int(config["intermediate_size"]) / width,
            "qkv_bias": bool(config.get("qkv_bias", True)),
            "class_token": True,
            "global_pool": "token",
        }
        epsilon = float(config.get("layer_norm_eps", 1e-12))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"config.json in {folder} does not say its sizes ({type(error).__name__}: {error})"
        ) from error
    if (activation := _ACTIVATIONS[str(config.get("hidden_act", "gelu"))]) is not None:
        arguments["act_layer"] = activation
    return arguments, epsilon


def _check_kind(config: Mapping[str, Any], folder: Path) -> str:
    """The family of models, which must be one of those that are covered."""
    kind = str(config["model_type"])
    if kind not in _TYPES:
        reason = _REASONS.get(kind, "its blocks are not those of timm's VisionTransformer")
        known = ", ".join(classes[0] for classes in _CLASSES.values())
        raise UnsupportedModelError(
            f"{folder} holds a {kind} model of transformers, which cannot be converted: {reason}. "
            f"Converted are {known}"
        )
    named = [name for name in config.get("architectures") or () if name not in _CLASSES[kind]]
    if named:
        raise UnsupportedModelError(
            f"{folder} holds a {named[0]}; of {kind} models only {', '.join(_CLASSES[kind])} are "
            "converted: save it as one of these"
        )
    return kind


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what timm's blocks do not do."""
    act, channels = config.get("hidden_act", "gelu"), config.get("num_channels", 3)
    reasons = {
        f"hidden_act={act!r} is none of {', '.join(_ACTIVATIONS)}": act not in _ACTIVATIONS,
        f"num_channels={channels}; images here have 3": channels != 3,
        "heads were pruned out of it (pruned_heads)": bool(config.get("pruned_heads")),
        "its weights are quantised (quantization_config); save them as float": (
            config.get("quantization_config") is not None
        ),
        f"problem_type={config.get('problem_type')!r}; only classes that exclude each other are "
        "served": config.get("problem_type") not in (None, "single_label_classification"),
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise UnsupportedModelError(f"config.json in {folder}: {reason}")


def _without_prefix(state: Weights, kind: str) -> Weights:
    """Names without the model's own in front, which a classifier's weights have."""
    prefix = {"vit_msn": "vit."}.get(kind, f"{kind}.")
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _renamed(state: Weights) -> Weights:
    """Timm's names; unknown ones stay, so that loading refuses them."""
    found: Weights = {}
    for name, value in state.items():
        if _UNUSED.match(name):
            continue
        for pattern, replacement in _NAMES:
            if re.match(pattern, name):
                name = re.sub(f"^{pattern}", replacement, name)
                break
        found[name] = value
    return found


def _fused(state: Weights, depth: int, folder: Path) -> Weights:
    """Query, key and value of each block as timm has them: one under the other."""
    for block in range(depth):
        for kind in ("weight", "bias"):
            names = [f"blocks.{block}.attn.{part}.{kind}" for part in ("query", "key", "value")]
            present = [name for name in names if name in state]
            if (present and len(present) < len(names)) or (kind == "weight" and not present):
                missing = next(name for name in names if name not in state)
                raise CheckpointError(
                    f"{folder} lacks weights: block {block} has no {missing.split('.')[3]} {kind}"
                )
            if present:
                parts = [state.pop(name) for name in names]
                state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return state


def _architecture(arguments: Mapping[str, Any], distilled: bool) -> str:
    """The timm name with these sizes, else one of the same kind that takes all of them."""
    shape = arguments["embed_dim"], arguments["depth"], arguments["num_heads"]
    family, middle = ("deit", "_distilled") if distilled else ("vit", "")
    patch, image = arguments["patch_size"][0], arguments["img_size"][0]
    exact = f"{family}_{_SIZES.get(shape, 'base')}{middle}_patch{patch}_{image}"
    return exact if timm.is_model(exact) else f"{family}_base{middle}_patch16_224"


def _images(kind: str, image: Sides, folder: Path) -> dict[str, Any]:
    """How images are prepared, as the processor's file in the folder says."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
            processor = content.get("image_processor", content)
            if not isinstance(processor, Mapping):
                raise ValueError("no JSON object")
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return preparation(processor, image, path)
    return default_preparation(kind, image, folder / "preprocessor_config.json")


def _pair(value: Any) -> Sides:
    """A side, or two."""
    height, width = value if isinstance(value, list | tuple) else (value, value)
    return int(height), int(width)
