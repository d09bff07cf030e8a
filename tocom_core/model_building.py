"""Build the timm ViT that a name or a checkpoint stands for, with its weights in it.

A file of ours says all that is needed in its header; other files are recognised by their
``config.json``, by what timm's training script stores, or by their name.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from tocom_core import architectures as _architectures  # noqa: F401 - registers with timm
from tocom_core.adaptformer import AdapterConfig, adapter_key, add_adapters
from tocom_core.checkpoint import Config, nearest, read_checkpoint
from tocom_core.errors import CheckpointError, UnsupportedModelError

logger = logging.getLogger(__name__)

_HUB = ("hf-hub:", "hf_hub:", "local-dir:")


@dataclass(frozen=True)
class Changes:
    """What a model is to have otherwise than its checkpoint.

    Attributes:
        num_classes: outputs of a new, untrained head; a head of that size is kept.
        img_size: side of the square input in pixels; timm resamples the position embeddings.
        drop_path: rate of stochastic depth while training; never stored.
    """

    num_classes: int | None = None
    img_size: int | None = None
    drop_path: float = 0.0

    @property
    def model_args(self) -> dict[str, Any]:
        """What has to be recorded to build the changed model again."""
        return {} if self.img_size is None else {"img_size": self.img_size}

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as timm's ``create_model`` takes it."""
        rate = {"drop_path_rate": self.drop_path} if self.drop_path else {}
        return {**self.model_args, **rate}


def build_named(name: str, changes: Changes, pretrained: bool) -> tuple[VisionTransformer, Config]:
    """Create a timm model by name, fetching its weights if asked to.

    Raises:
        CheckpointError: no such name, arguments that timm refuses, or weights that cannot be had.
        UnsupportedModelError: not a timm ``VisionTransformer``.
    """
    short = name.split(".")[0]
    from_hub = name.startswith(_HUB)
    if not from_hub and not timm.is_model(short):
        raise CheckpointError(
            f"no model {name!r}: neither a file nor a timm architecture{nearest(short)}"
        )
    arguments = dict(changes.arguments)
    if changes.num_classes is not None:
        arguments["num_classes"] = changes.num_classes
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError) as error:
        raise _refused(name, name, arguments, error) from error
    except Exception as error:  # the hub's client fails in any way
        if not (pretrained or from_hub):
            raise _refused(name, name, arguments, error) from error
        raise CheckpointError(
            f"the weights of {name!r} cannot be fetched ({type(error).__name__}: {error}); check "
            "the name and the network, or give a local .safetensors or .pth file"
        ) from error
    return _vision_transformer(model, name), {"model_args": changes.model_args}


def build_from_file(
    path: Path, architecture: str | None, changes: Changes
) -> tuple[VisionTransformer, Config]:
    """Build the architecture that a checkpoint is for, adapters included, and load it strictly.

    Raises:
        CheckpointError: the file cannot be read, or does not fit what it says it is.
        UnsupportedModelError: not a timm ``VisionTransformer``.
    """
    state, config = read_checkpoint(path)
    name = str(architecture or config.get("architecture") or _guess_architecture(path))
    if not timm.is_model(name.split(".")[0]):
        raise CheckpointError(f"timm has no architecture {name!r}{nearest(name)}")
    head = state.get("head.weight")
    classes = int(head.shape[0]) if head is not None else int(config.get("num_classes") or 0)
    model_args = {**(config.get("model_args") or {}), **changes.model_args}
    arguments = {"num_classes": classes, **model_args, **changes.arguments}
    cfg = dict(config.get("pretrained_cfg") or {})
    cfg.pop("num_classes", None)
    try:
        model = timm.create_model(name, pretrained_cfg_overlay=cfg or None, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise _refused(path, name, {**arguments, **cfg}, error) from error
    vit = _vision_transformer(model, name)
    _add_recorded_adapters(vit, state, config, path)
    _load_strictly(vit, state, path)
    config = {**config, "model_args": model_args}
    if changes.num_classes is not None and changes.num_classes != classes:
        vit.reset_classifier(changes.num_classes)
        config = _without_head(config)
    return vit, config


def _add_recorded_adapters(
    vit: VisionTransformer, state: dict[str, Tensor], config: Config, path: Path
) -> None:
    """Give the model the adapters that the file's header tells of."""
    recorded = config.get("tocom", {}).get("adaptformer")
    key = adapter_key(state)
    if recorded is None and key is None:
        return
    if recorded is None:
        raise CheckpointError(
            f"{path} holds adapter weights ({key}), but no header of ours says their scale; "
            "give the model.safetensors that tocom finetune wrote, or one from save_model"
        )
    try:
        adapters = AdapterConfig(**recorded)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} records the adapters {recorded!r}, expected bottleneck and scale: {error}"
        ) from error
    add_adapters(vit, adapters.bottleneck, adapters.scale)


def _without_head(config: Config) -> Config:
    """What still holds of a config when the head is new: not its labels, nor its accuracy."""
    tocom = {**config.get("tocom", {}), "evaluation": None}
    return {"model_args": config["model_args"], "tocom": tocom}


def _refused(
    what: str | Path, name: str, arguments: dict[str, Any], error: Exception
) -> CheckpointError:
    return CheckpointError(
        f"{what} asks for a {name} with {arguments}, which timm refuses "
        f"({type(error).__name__}): {error}"
    )


def _vision_transformer(model: nn.Module, name: str) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModelError(
            f"{name} is a {type(model).__name__}; only timm's VisionTransformer is supported"
        )
    if model.in_chans != 3:
        raise UnsupportedModelError(f"{name} takes {model.in_chans} channels; images here have 3")
    patch = model.patch_embed
    if not all(patch.grid_size):
        raise CheckpointError(
            f"img_size {patch.img_size} is less than one patch of {name}, {patch.patch_size}; "
            "use a multiple of it"
        )
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
