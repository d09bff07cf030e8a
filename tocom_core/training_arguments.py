"""What the arguments of somebody's training run say about the model that came out of it.

Training scripts store their command line beside the weights: timm's ``train.py`` in each checkpoint
and as ``args.yaml``, DeiT's and MAE's in each checkpoint. It names the architecture, what was
changed of it, and how images were prepared.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from tocom_core.errors import CheckpointError

_PREPARATION = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def known_name(name: object) -> str | None:
    """The timm architecture that a script's name of a model stands for, if there is one.

    MAE leaves the image size out (``vit_base_patch16``), and a model from timm's own place on the
    hub (``hf-hub:timm/vit_…``) is named as in timm.
    """
    if not isinstance(name, str):
        return None
    short = name.rpartition("/")[2] if name.startswith(("hf-hub:timm/", "hf_hub:timm/")) else name
    for candidate in (short, f"{short}_224"):
        if "/" not in candidate and timm.is_model(candidate.split(".")[0]):
            return candidate
    return None


def config_of_run(arguments: Mapping[str, Any], arch: object = None) -> dict[str, Any]:
    """Turn stored arguments into a config in timm's hub layout.

    Args:
        arguments: of timm's ``train.py``, or of DeiT's or MAE's ``main_finetune.py``.
        arch: what the checkpoint itself calls its model.

    Returns:
        ``architecture``, ``model_args`` and ``pretrained_cfg``, each only if something is known.
    """
    config: dict[str, Any] = {}
    name = known_name(arch) or known_name(arguments.get("model"))
    if name is not None:
        config["architecture"] = name
    deit = "nb_classes" in arguments  # timm's script calls it num_classes
    parts = {
        "model_args": _deit_size(arguments) if deit else _timm_arguments(arguments),
        "pretrained_cfg": _deit_preparation(arguments) if deit else _timm_preparation(arguments),
    }
    return {**config, **{key: value for key, value in parts.items() if value}}


def read_args_yaml(path: Path) -> dict[str, Any]:
    """Read the ``args.yaml`` that timm's ``train.py`` leaves in its output folder.

    Raises:
        CheckpointError: it is no YAML mapping of plain values.
    """
    try:
        arguments = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read as plain YAML: {error}") from error
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path} must be a mapping of arguments, not {arguments!r:.40}")
    return config_of_run(arguments)


def _timm_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(arguments.get("model_kwargs") or {})
    if arguments.get("gp"):
        found.setdefault("global_pool", arguments["gp"])
    size = arguments.get("img_size") or list(arguments.get("input_size") or ())[1:]
    if size:
        found.setdefault("img_size", size)
    return found


def _timm_preparation(arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: arguments[key] for key in _PREPARATION if arguments.get(key)}
    for key in {"mean", "std"} & found.keys():
        found[key] = list(found[key]) * (3 if len(found[key]) == 1 else 1)
    return found


def _deit_size(arguments: Mapping[str, Any]) -> dict[str, Any]:
    size = arguments.get("input_size")
    return {"img_size": size} if isinstance(size, int) else {}


def _deit_preparation(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As DeiT's and MAE's evaluation does it, whose arguments do not say all of it."""
    size = arguments.get("input_size")
    mae = "data_set" not in arguments
    whole = mae and isinstance(size, int) and size > 224
    return research_preparation(1.0 if whole else arguments.get("eval_crop_ratio") or 224 / 256)


def research_preparation(crop_pct: float = 224 / 256) -> dict[str, Any]:
    """How DeiT's and MAE's code prepares images for evaluation."""
    return {
        "mean": list(IMAGENET_DEFAULT_MEAN),
        "std": list(IMAGENET_DEFAULT_STD),
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }
