"""Build the timm ViT that a name or a checkpoint stands for, with its weights in it.

A file of ours says all that is needed in its header; other files are recognised by their
``config.json``, by what training scripts store, by their name, or by the shapes in them.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from tocom_core import architectures as _architectures  # noqa: F401 - registers with timm
from tocom_core import hub_files, research_checkpoints, transformers_checkpoints
from tocom_core.adaptformer import AdapterConfig, adapter_key, add_adapters
from tocom_core.checkpoint import Config, nearest, read_checkpoint
from tocom_core.errors import CheckpointError, UnsupportedModelError
from tocom_core.norm_epsilon import set_norm_eps
from tocom_core.training_arguments import known_name, research_preparation

logger = logging.getLogger(__name__)

_PREPARATION = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")
"""What timm's configs once had beside the architecture, before they got a section of their own."""


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
    if not timm.is_model(short):
        hint = f"; on the hub it would be hf-hub:{name}" if name.count("/") == 1 else nearest(short)
        raise CheckpointError(
            f"no model {name!r}: neither a file, a folder nor a timm architecture{hint}"
        )
    arguments = dict(changes.arguments)
    if changes.num_classes is not None:
        arguments["num_classes"] = changes.num_classes
    try:
        model = timm.create_model(
            name,
            pretrained=pretrained,
            pretrained_cfg_overlay=_fetched(name) if pretrained else None,
            **arguments,
        )
    except CheckpointError:
        raise
    except (TypeError, AssertionError) as error:
        raise _refused(name, name, arguments, error) from error
    except Exception as error:  # the hub's client fails in any way
        if not pretrained:
            raise _refused(name, name, arguments, error) from error
        raise CheckpointError(
            f"the weights of {name!r} cannot be fetched ({type(error).__name__}: {error}); check "
            "the name and the network, or give a local .safetensors or .pth file"
        ) from error
    return _vision_transformer(model, name), {"model_args": changes.model_args}


def _fetched(name: str) -> Config | None:
    """Where the weights of a timm name lie in the local cache; ``None`` where timm itself knows."""
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id or known.custom_load:
        return None
    repository = hub_files.parse(f"hf-hub:{known.hf_hub_id}")
    return {"file": str(hub_files.fetch(repository, known.hf_hub_filename))}


def build_from_file(
    path: Path, architecture: str | None, changes: Changes
) -> tuple[VisionTransformer, Config]:
    """Build the architecture that a checkpoint is for, adapters included, and load it strictly.

    Raises:
        CheckpointError: the file cannot be read, or does not fit what it says it is.
        UnsupportedModelError: not a timm ``VisionTransformer``.
    """
    state, config = _read(path)
    name, config = _with_architecture(path, architecture, state, config)
    if not timm.is_model(name.split(".")[0]):
        raise CheckpointError(f"timm has no architecture {name!r}{nearest(name)}")
    head = state.get("head.weight")
    classes = int(head.shape[0]) if head is not None else int(config.get("num_classes") or 0)
    told = {**research_checkpoints.pooling(state), **(config.get("model_args") or {})}
    model_args = {**told, **changes.model_args}
    arguments = {"num_classes": classes, **model_args, **changes.arguments}
    cfg = _pretrained_cfg(config)
    try:
        model = timm.create_model(name, pretrained_cfg_overlay=cfg or None, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise _refused(path, name, {**arguments, **cfg}, error) from error
    vit = _vision_transformer(model, name)
    _add_recorded_adapters(vit, state, config, path)
    _load_strictly(vit, state, path)
    if (epsilon := config.get("tocom", {}).get("norm_eps")) is not None:
        set_norm_eps(vit, epsilon)
    config = {**config, "model_args": model_args}
    if changes.num_classes is not None and changes.num_classes != classes:
        vit.reset_classifier(changes.num_classes)
        config = _without_head(config)
    return vit, config


def _read(path: Path) -> tuple[dict[str, Tensor], Config]:
    """A checkpoint with timm's names, whoever wrote it."""
    state, config = read_checkpoint(path)
    if transformers_checkpoints.is_transformers(config):
        return transformers_checkpoints.convert(state, config, path.parent)
    return research_checkpoints.clean(state), config


def _with_architecture(
    path: Path, told: str | None, state: dict[str, Tensor], config: Config
) -> tuple[str, Config]:
    """Timm's name of what a checkpoint holds, and its config with the arguments that go with it.

    What the user or the checkpoint says goes before the file's name, and that before the shapes.
    """
    if told is not None:
        return known_name(told) or told, config
    if config.get("architecture"):
        return str(config["architecture"]), config
    if (name := _name_in_path(path)) is not None:
        logger.info("architecture %s read off the file name %s", name, path.name)
        return name, config
    try:
        name, arguments = research_checkpoints.infer_architecture(state)
    except research_checkpoints.Ambiguous as error:
        raise CheckpointError(
            f"{path} does not say its architecture, and {error}; name it "
            "(--architecture vit_small_patch16_224, say)"
        ) from error
    logger.warning(
        "%s does not say its architecture; by its shapes it is a %s with %s, and its images are "
        "prepared as DeiT and MAE do it; --architecture names another",
        *(path, name, arguments),
    )
    return name, {
        **config,
        "model_args": {**arguments, **(config.get("model_args") or {})},
        "pretrained_cfg": {**research_preparation(), **(config.get("pretrained_cfg") or {})},
    }


def _pretrained_cfg(config: Config) -> Config:
    """How images are prepared, from either of timm's layouts."""
    cfg = dict(config.get("pretrained_cfg") or {k: config[k] for k in _PREPARATION if k in config})
    cfg.pop("num_classes", None)
    return cfg


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


def _name_in_path(path: Path) -> str | None:
    """The longest timm name that the file's name holds, else its folder's; ``None`` without one."""
    known = timm.list_models()
    found = [name for name in known if name in path.name]
    found = found or [name for name in known if name in path.absolute().parent.name]
    return max(found, key=len, default=None)
