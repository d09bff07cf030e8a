"""Load a fine-tuned ViT with everything that serving it needs: labels, transform, ``r_source``.

The ViT itself is built in ``model_building``, and written by ``model_files``, whose names can be
imported from here as well.
"""

import logging
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom_core.bank import Bank, backbone_digest
from tocom_core.bank_places import locate_bank
from tocom_core.checkpoint import Config
from tocom_core.errors import DeviceError, TocomError
from tocom_core.labels import class_labels
from tocom_core.model_building import Changes, build_from_file, build_named
from tocom_core.model_files import save_model, store_evaluation
from tocom_core.model_places import Place, locate

__all__ = [
    "DEFAULT_ARCHITECTURE",
    "LoadedModel",
    "default_model_path",
    "describe",
    "find_bank",
    "load_model",
    "pick_device",
    "save_model",
    "store_evaluation",
    "weights_folder",
]

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
        prop_attn: whether it was fine-tuned with proportional attention; ``None`` if it does not
            say, or was fine-tuned at ``r_source = 0``, where that changes nothing.
        digest: SHA-256 of the backbone's parameters, see ``bank.backbone_digest``.
        trained_from: digest of the backbone that the model was fine-tuned from, if it says so.
        evaluation: table of accuracy per degree from the file's header, if it has one.
        transform_info: the transform in words, for ``GET /model``.
        model_args: what timm's ``create_model`` was given beyond the name, to build it again.
        file: where the weights lie; ``None`` for a name of timm's.
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
    prop_attn: bool | None
    digest: str
    trained_from: str | None
    evaluation: dict[str, Any] | None
    transform_info: Mapping[str, Any]
    model_args: Mapping[str, Any]
    file: Path | None = None

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale uint8 ``(B, 3, H, W)`` to ``[0, 1]`` and normalise, on its own device."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return ((images.float() / 255 - mean) / std).to(dtype)

    def choose_prop_attn(self, wanted: bool | None, bank: Bank | None) -> bool:
        """Proportional attention: as wanted, else as tuned, else as the bank was trained, else on.

        The tuned weights go before the bank, whose deltas are small beside them; a warning tells
        where the two disagree and nothing is wanted.
        """
        if wanted is not None:
            return wanted
        if self.prop_attn is None:
            return True if bank is None else bank.prop_attn
        if bank is not None and bank.method == "merge" and bank.prop_attn != self.prop_attn:
            logger.warning(
                "prop_attn=%s, as %s was fine-tuned, though its bank was trained with "
                "prop_attn=%s; set prop_attn if the bank's is meant",
                *(self.prop_attn, self.name, bank.prop_attn),
            )
        return self.prop_attn


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


def find_bank(
    model: str | Path,
    bank: str = "auto",
    loaded: LoadedModel | None = None,
    *,
    local_only: bool = False,
) -> Path | None:
    """Where a model's bank lies.

    Args:
        model: ``"default"``, a model file, or a timm name.
        bank: a file, a folder or ``hf-hub:owner/name[@revision]``, as of ``locate_bank``;
            ``"none"``; or ``"auto"`` for ``bank.safetensors`` beside the model file, else the bank
            that is shipped for the backbone of the model.
        loaded: the model itself, to find a shipped bank by the backbone that it is, or was
            fine-tuned from.
        local_only: ask no hub for a bank; what was fetched before is found.

    Returns:
        the file; ``None`` if none is wanted, or ``auto`` finds none.

    Raises:
        BankError: a shipped bank cannot be read, or what ``bank`` names cannot be found.
    """
    if bank == "none":
        return None
    if bank != "auto":
        return locate_bank(bank, local_only=local_only)
    file = default_model_path() if model == "default" else Path(model).expanduser()
    if loaded is not None and loaded.file is not None and not file.is_file():
        file = loaded.file  # a folder's or the hub's
    beside = file.with_name("bank.safetensors")
    if file.is_file() and beside.is_file():
        return beside
    return None if loaded is None else _shipped_bank(loaded)


def _shipped_bank(loaded: LoadedModel) -> Path | None:
    """The bank in ``weights/`` for exactly this backbone."""
    path = weights_folder() / loaded.architecture / "bank.safetensors"
    if path.is_file() and Bank.load(path).backbone_digest in (loaded.digest, loaded.trained_from):
        return path
    return None


def load_model(
    name_or_path: str | Path,
    *,
    architecture: str | None = None,
    labels: str | Path | None = None,
    num_classes: int | None = None,
    r_source: int | None = None,
    pretrained: bool = True,
    img_size: int | None = None,
    drop_path: float = 0.0,
) -> LoadedModel:
    """Load a timm model by name, or a checkpoint from a file, a folder or the hub.

    Args:
        name_or_path: ``"default"``, a timm name (weights come from the hub),
            ``hf-hub:owner/name[@revision]``, a ``.safetensors`` / ``.pth`` file (pickles are read
            with ``weights_only=True``), or the folder of one: timm's or transformers' layout.
        architecture: timm's name, for a file that does not say it.
        labels: a text file with one label per line, or JSON (a list, or ``{"0": "cat", …}``).
        num_classes: give the model a new, untrained head if it has another number of classes.
        r_source: the degree it was fine-tuned at; default: what the file says, else 0.
        pretrained: for a timm name: fetch its weights; ``False`` is random initialisation.
        img_size: side of another square input, in pixels; position embeddings are resampled.
        drop_path: rate of stochastic depth, for a model that is going to be trained.

    Raises:
        CheckpointError: nothing to load there, or it does not fit; the message says how to mend it.
        UnsupportedModelError: not a timm ``VisionTransformer``.
    """
    changes = Changes(num_classes, img_size, drop_path)
    place = locate(default_model_path() if name_or_path == "default" else name_or_path)
    if place is None:
        vit, config = build_named(str(name_or_path), changes, pretrained)
        return describe(vit.eval(), str(name_or_path), config, labels, r_source)
    with _told_by_name(place):
        vit, config = build_from_file(place.file, architecture, changes)
        loaded = describe(vit.eval(), place.name, config, labels, r_source)
    return replace(loaded, file=place.file)


@contextmanager
def _told_by_name(place: Place) -> Iterator[None]:
    """Let errors name what the user named, instead of a folder deep in the hub's cache."""
    try:
        yield
    except TocomError as error:
        if place.shown is None:
            raise
        raise type(error)(str(error).replace(str(place.file.parent), place.shown)) from error


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
        prop_attn=_told_prop_attn(tocom),
        digest=backbone_digest(vit),
        trained_from=tocom.get("trained_from"),
        evaluation=tocom.get("evaluation"),
        transform_info=types.MappingProxyType(
            {k: data[k] for k in ("interpolation", "crop_pct", "crop_mode", "mean", "std")}
        ),
        model_args=types.MappingProxyType(dict(config.get("model_args") or {})),
    )


def _told_prop_attn(tocom: Mapping[str, Any]) -> bool | None:
    """What a file's header says, unless the model was fine-tuned where it changes nothing."""
    told = tocom.get("prop_attn")
    return told if isinstance(told, bool) and tocom.get("r_source") else None
