"""Load a fine-tuned ViT with everything that serving it needs, and save one.

A model file of ours is a ``.safetensors`` whose header carries a ``config`` in timm's own hub
layout (architecture, model_args, label_names, pretrained_cfg) plus a ``tocom`` section: the degree
it was fine-tuned at, where it comes from, how accurate it is per degree.  Files without it work as
well: the architecture is then given, or read off the file's name.
"""

import json
import logging
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from tocom_core import architectures as _architectures  # noqa: F401 - registers with timm
from tocom_core.bank import backbone_digest
from tocom_core.checkpoint import Config, nearest, read_checkpoint, write_safetensors
from tocom_core.errors import CheckpointError, DeviceError, UnsupportedModelError
from tocom_core.labels import class_labels

logger = logging.getLogger(__name__)

DEFAULT_ARCHITECTURE = "vit_mini_conv4_32"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to serve.

    Attributes:
        vit: the timm model, in eval mode, float32, on the CPU.
        name: what the user asked for, shortened to the file's or timm's name.
        architecture: timm's name of the architecture.
        labels: one name per class.
        input_size: ``(3, H, W)``.
        mean: per channel, of images scaled to ``[0, 1]``.
        std: likewise.
        transform: RGB image to uint8 tensor ``(3, H, W)``: timm's evaluation transform up to, but
            without, normalisation.
        r_source: the degree that the model was fine-tuned at.
        digest: SHA-256 of the backbone's parameters, see ``bank.backbone_digest``.
        trained_from: digest of the backbone that the model was fine-tuned from, if it says so.
        evaluation: table of accuracy per degree from the file's header, if it has one.
        transform_info: the transform in words, for ``GET /model``.
        model_args: what timm's ``create_model`` was given beyond the name, to build it again.
    """

    vit: VisionTransformer
    name: str
    architecture: str
    labels: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Image.Image], Tensor]
    r_source: int
    digest: str
    trained_from: str | None
    evaluation: dict[str, Any] | None
    transform_info: Mapping[str, Any]
    model_args: Mapping[str, Any]

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale uint8 ``(B, 3, H, W)`` to ``[0, 1]`` and normalise, on its own device."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return ((images.float() / 255 - mean) / std).to(dtype)


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        DeviceError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device={name!r} is none; use auto, cpu, mps, cuda or cuda:N") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "mps" and not torch.backends.mps.is_available():
        count = 0
    if (device.index or 0) >= count:
        raise DeviceError(
            f"device={name!r} is not on this machine ({count} of that kind); "
            "use device=auto or device=cpu"
        )
    return device


def weights_folder() -> Path:
    """Where the shipped weights lie: inside the installed package, or in the checkout."""
    packaged = Path(__file__).parent / "_weights"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "weights"


def default_model_path() -> Path:
    """The embedded default model's file."""
    return weights_folder() / DEFAULT_ARCHITECTURE / "model.safetensors"


def find_bank(model: str | Path, bank: str = "auto") -> Path | None:
    """Where a model's bank lies.

    Args:
        model: ``"default"``, a model file, or a timm name.
        bank: a file, ``"none"``, or ``"auto"`` for ``bank.safetensors`` beside the model file.

    Returns:
        the file; ``None`` if none is wanted, or ``auto`` finds none.
    """
    if bank == "none":
        return None
    if bank != "auto":
        return Path(bank).expanduser()
    file = default_model_path() if model == "default" else Path(model).expanduser()
    beside = file.with_name("bank.safetensors")
    return beside if file.is_file() and beside.is_file() else None


def load_model(
    name_or_path: str | Path,
    *,
    architecture: str | None = None,
    labels: str | Path | None = None,
    num_classes: int | None = None,
    r_source: int | None = None,
    pretrained: bool = True,
) -> LoadedModel:
    """Load a timm model by name, or a checkpoint from a file.

    Args:
        name_or_path: ``"default"``, a timm name (weights come from the hub), ``hf-hub:owner/name``,
            or a ``.safetensors`` / ``.pth`` file (pickles are read with ``weights_only=True``).
        architecture: timm's name, for a file that does not say it.
        labels: a text file with one label per line, or JSON (a list, or ``{"0": "cat", …}``).
        num_classes: give the model a new, untrained head if it has another number of classes.
        r_source: the degree it was fine-tuned at; default: what the file says, else 0.
        pretrained: for a timm name: fetch its weights; ``False`` is random initialisation.

    Raises:
        CheckpointError: nothing to load there, or it does not fit; the message says how to mend it.
        UnsupportedModelError: not a timm ``VisionTransformer``.
    """
    path = default_model_path() if name_or_path == "default" else Path(name_or_path).expanduser()
    if path.suffix in {".safetensors", ".pth", ".pt", ".bin", ".tar"} or path.is_file():
        vit, config = _from_file(path, architecture, num_classes)
        name = path.parent.name if path.stem == "model" else path.stem
    else:
        name = str(name_or_path)
        vit, config = _from_timm(name, num_classes, pretrained), {}
    return describe(vit.eval(), name, config, labels, r_source)


def describe(
    vit: VisionTransformer,
    name: str,
    config: Config | None = None,
    labels: str | Path | None = None,
    r_source: int | None = None,
) -> LoadedModel:
    """Gather what serving needs beside the weights; arguments as in ``load_model``."""
    config = config or {}
    data = resolve_data_config(pretrained_cfg=dict(vit.pretrained_cfg), model=vit)
    data["input_size"] = (vit.in_chans, *vit.patch_embed.img_size)
    tocom = config.get("tocom", {})
    return LoadedModel(
        vit=vit,
        name=name,
        architecture=str(vit.pretrained_cfg.get("architecture") or name),
        labels=class_labels(vit, config, labels),
        input_size=data["input_size"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        transform=create_transform(**data, is_training=False, normalize=False),
        r_source=int(tocom.get("r_source", 0)) if r_source is None else r_source,
        digest=backbone_digest(vit),
        trained_from=tocom.get("trained_from"),
        evaluation=tocom.get("evaluation"),
        transform_info=types.MappingProxyType(
            {k: data[k] for k in ("interpolation", "crop_pct", "crop_mode", "mean", "std")}
        ),
        model_args=types.MappingProxyType(dict(config.get("model_args") or {})),
    )


def _from_timm(name: str, num_classes: int | None, pretrained: bool) -> VisionTransformer:
    """Create a timm model by name, fetching its weights if asked to."""
    short = name.split(".")[0]
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(short):
        raise CheckpointError(
            f"no model {name!r}: neither a file nor a timm architecture{nearest(short)}"
        )
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        vit = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        raise CheckpointError(
            f"the weights of {name!r} cannot be fetched ({type(error).__name__}: {error}); check "
            "the name and the network, or give a local .safetensors or .pth file"
        ) from error
    return _vision_transformer(vit, name)


def _from_file(
    path: Path, architecture: str | None, num_classes: int | None
) -> tuple[VisionTransformer, Config]:
    """Build the architecture that a checkpoint is for and load it strictly."""
    state, config = read_checkpoint(path)
    name = architecture or config.get("architecture") or _guess_architecture(path)
    if not timm.is_model(str(name).split(".")[0]):
        raise CheckpointError(f"timm has no architecture {name!r}{nearest(str(name))}")
    head = state.get("head.weight")
    classes = int(head.shape[0]) if head is not None else int(config.get("num_classes") or 0)
    cfg = dict(config.get("pretrained_cfg") or {})
    cfg.pop("num_classes", None)
    arguments = {"num_classes": classes, **(config.get("model_args") or {})}
    try:
        model = timm.create_model(name, pretrained_cfg_overlay=cfg or None, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} asks for a {name} with {arguments} and {cfg}, which timm refuses: {error}"
        ) from error
    vit = _vision_transformer(model, str(name))
    _load_strictly(vit, state, path)
    if num_classes is not None and num_classes != classes:
        vit.reset_classifier(num_classes)
        tocom = {
            **config.get("tocom", {}),
            "evaluation": None,
        }  # labels and table were the old head's
        config = {"model_args": config.get("model_args"), "tocom": tocom}
    return vit, config


def _vision_transformer(model: torch.nn.Module, name: str) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModelError(
            f"{name} is a {type(model).__name__}; only timm's VisionTransformer is supported"
        )
    if model.in_chans != 3:
        raise UnsupportedModelError(f"{name} takes {model.in_chans} channels; images here have 3")
    return model


def _load_strictly(vit: VisionTransformer, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict after timm's own conversions (position embeddings, research layouts)."""
    try:
        state = checkpoint_filter_fn(state, vit)
        vit.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
    except (RuntimeError, KeyError, ValueError) as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{path} does not fit {vit.pretrained_cfg.get('architecture')}: "
            f"{' '.join(line.strip() for line in lines[:4])}; name its architecture"
        ) from error


def _guess_architecture(path: Path) -> str:
    """The longest timm name that the file's name holds, else its folder's."""
    known = timm.list_models()
    found = [name for name in known if name in path.name]
    found = found or [name for name in known if name in path.absolute().parent.name]
    if not found:
        raise CheckpointError(
            f"{path} does not say its architecture; name it "
            "(--architecture vit_small_patch16_224, say)"
        )
    name: str = max(found, key=len)
    logger.info("architecture %s read off the file name %s", name, path.name)
    return name


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
        vit: the model.
        labels: one name per class.
        dtype: floating-point type to store; float16 halves the file.
        model_args: what timm's ``create_model`` was given beyond the name.
        tocom: ``r_source``, ``trained_from``, ``evaluation``, ``provenance``.
    """
    cfg = vit.pretrained_cfg
    keep = (
        "input_size",
        "mean",
        "std",
        "interpolation",
        "crop_pct",
        "crop_mode",
        "fixed_input_size",
    )
    config = {
        "architecture": cfg["architecture"],
        "num_classes": vit.num_classes,
        "label_names": list(labels),
        "model_args": dict(model_args or {}),
        "pretrained_cfg": {key: cfg[key] for key in keep if key in cfg},
        "tocom": dict(tocom or {}),
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
