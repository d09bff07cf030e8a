"""Write model files that need nothing beside themselves to be served.

A model file of ours is a ``.safetensors`` whose header carries a ``config`` in timm's own hub
layout (architecture, model_args, label_names, pretrained_cfg) plus a ``tocom`` section: the degree
it was fine-tuned at, where it comes from, its adapters, how accurate it is per degree.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from tocom_core.adaptformer import adapter_config
from tocom_core.checkpoint import read_checkpoint, write_safetensors
from tocom_core.errors import CheckpointError
from tocom_core.norm_epsilon import norm_eps

_KEPT = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "fixed_input_size")


def save_model(
    path: Path,
    vit: VisionTransformer,
    labels: tuple[str, ...],
    *,
    dtype: torch.dtype = torch.float32,
    model_args: Mapping[str, Any] | None = None,
    tocom: Mapping[str, Any] | None = None,
) -> None:
    """Write a model with its config in the header, so that ``load_model(path)`` needs nothing else.

    Args:
        path: the ``.safetensors`` file; written beside itself first, then renamed.
        vit: the model; that it has adapters, and of which scale, is recorded without being told.
        labels: one name per class.
        dtype: floating-point type to store; float16 halves the file.
        model_args: what timm's ``create_model`` was given beyond the name.
        tocom: ``r_source``, ``trained_from``, ``evaluation``, ``provenance``.
    """
    cfg = vit.pretrained_cfg
    config = {
        "architecture": cfg["architecture"],
        "num_classes": vit.num_classes,
        "label_names": list(labels),
        "model_args": dict(model_args or {}),
        "pretrained_cfg": {
            "input_size": [vit.in_chans, *vit.patch_embed.img_size],
            **{key: cfg[key] for key in _KEPT if key in cfg},
        },
        "tocom": {**(tocom or {}), **_adapters(vit), **_norms(vit)},
    }
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for key, value in vit.state_dict().items()
    }
    write_safetensors(path, state, {"config": json.dumps(config)})


def store_evaluation(path: Path, table: Mapping[str, Any]) -> None:
    """Write an accuracy table into a model file's header; the tensors stay as they are.

    Raises:
        CheckpointError: not a ``.safetensors`` file with a config of ours.
    """
    state, config = read_checkpoint(path)
    if path.suffix != ".safetensors" or "tocom" not in config:
        raise CheckpointError(
            f"{path} has no header of ours to store a table in; save_model writes one"
        )
    config["tocom"]["evaluation"] = dict(table)
    write_safetensors(path, state, {"config": json.dumps(config)})


def _adapters(vit: VisionTransformer) -> dict[str, Any]:
    adapters = adapter_config(vit)
    return {} if adapters is None else {"adaptformer": asdict(adapters)}


def _norms(vit: VisionTransformer) -> dict[str, Any]:
    """The epsilon of the norms, where it is not the one that timm takes."""
    epsilon = norm_eps(vit)
    return {} if epsilon in (None, 1e-6) else {"norm_eps": epsilon}
