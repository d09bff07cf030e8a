"""Supervised training of a model at some ``r_source``: from scratch or from a checkpoint.

The result is an ordinary model file; a bank for its backbone then serves it at other degrees.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom_core import architectures as _architectures  # noqa: F401 - registers with timm
from tocom_core.compressed_vit import CompressedViT
from tocom_core.data import TrainingImages, augmentation
from tocom_core.errors import CheckpointError, DataError, TocomError
from tocom_core.evaluation import predict, top1
from tocom_core.models import LoadedModel, describe, load_model, pick_device, save_model
from tocom_core.options import command_line, option, parse_options
from tocom_core.sources import ImageSource, open_source
from tocom_core.training import LoopOptions, TrainingLoop

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(LoopOptions):
    """Options of ``tocom finetune``."""

    data: str = option(
        help="folder of images (one sub-folder per class), parquet, or hub:owner/name"
    )
    split: str = option("train", help="files or sub-folder to train on, by this word in the name")
    val_data: str | None = option(None, help="validation data; default: the same place")
    val_split: str = option("test", help="likewise, to validate on")
    image_column: str = option("image", help="parquet column of the images")
    label_column: str = option("label", help="parquet column of the class indices")
    model: str = option(help="timm name, or a checkpoint to start from")
    architecture: str | None = option(None, help="timm name, for a checkpoint that does not say it")
    pretrained: bool = option(False, help="for a timm name: start from its hub weights")
    r_source: int = option(0, help="tokens merged per layer while training")
    prop_attn: bool = option(True, help="proportional attention")
    drop_path: float = option(0.0, help="stochastic depth rate (from scratch only)")
    smoothing: float = option(0.1, help="label smoothing")
    mixup: float = option(0.0, help="mixup alpha")
    cutmix: float = option(0.0, help="cutmix alpha")
    min_scale: float = option(0.5, help="smallest area of a random crop")
    color_jitter: float = option(0.2, help="strength of colour jitter")
    auto_augment: str | None = option(None, help="timm policy, such as rand-m9-mstd0.5-inc1")
    store_dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float16", help="type of the stored weights"
    )


def finetune(options: FinetuneOptions, command: str = "") -> Path:
    """Train, and write ``model.safetensors`` into the output folder.

    Returns:
        the model file.

    Raises:
        DataError, CheckpointError, UnsupportedModelError, TrainingError: with how to mend it.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    source = open_source(options.data, options.split, options.image_column, options.label_column)
    names = _class_names(source)
    start = _starting_model(options, names)
    device = pick_device(options.device)
    model = CompressedViT(start.vit.to(device), prop_attn=options.prop_attn)
    validation = _validation_source(options, names)
    transform = augmentation(
        start.input_size,
        start.transform_info["interpolation"],
        options.min_scale,
        options.color_jitter,
        options.auto_augment,
    )
    images = TrainingImages(source, transform, options.seed)
    objective = _Objective(model, start, options, len(names))

    def validate() -> Mapping[str, float]:
        if validation is None:
            return {}
        logits, labels = predict(model, start, validation, options.r_source)
        return {"top1": top1(logits, labels)}

    TrainingLoop(model.vit, images, options, objective, validate).run()
    figures = dict(validate())
    path = options.output / "model.safetensors"
    provenance = {"command": command, "seed": options.seed, "images": len(images), **figures}
    save_model(
        path,
        model.vit.eval().cpu(),
        names,
        dtype=getattr(torch, options.store_dtype),
        model_args=start.model_args,
        tocom={
            "r_source": options.r_source,
            "trained_from": None if _from_scratch(options) else start.digest,
            "provenance": provenance,
        },
    )
    (options.output / "finetune.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return path


class _Objective:
    """The supervised loss at ``r_source``; soft targets under mixup, cutmix or smoothing."""

    def __init__(
        self, model: CompressedViT, loaded: LoadedModel, options: FinetuneOptions, classes: int
    ) -> None:
        self._model, self._loaded, self._r = model, loaded, options.r_source
        self._mix = (
            Mixup(
                mixup_alpha=options.mixup,
                cutmix_alpha=options.cutmix,
                label_smoothing=options.smoothing,
                num_classes=classes,
            )
            if options.mixup or options.cutmix
            else None
        )
        self._soft = SoftTargetCrossEntropy()
        self._hard = nn.CrossEntropyLoss(label_smoothing=options.smoothing)

    def __call__(
        self, step: int, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        self._model.train()
        images = self._loaded.normalize(images)
        if self._mix is None:
            return self._hard(self._model(images, self._r).float(), labels), {}
        images, targets = self._mix(images, labels)
        return self._soft(self._model(images, self._r).float(), targets), {}


def _class_names(source: ImageSource) -> tuple[str, ...]:
    """The data set's class names, or numbers up to its largest label."""
    labels = {source.label(i) for i in range(len(source))}
    if None in labels:
        raise DataError(
            "fine-tuning needs a label for every image: use one sub-folder per class, "
            "or name the label column"
        )
    count = max(label for label in labels if label is not None) + 1
    names = source.class_names or tuple(f"class {i}" for i in range(count))
    if len(names) < count:
        raise DataError(
            f"label {count - 1} occurs, but the data set names only {len(names)} classes"
        )
    missing = [name for number, name in enumerate(names) if number not in labels]
    if missing:
        logger.warning("no training image of class %s", ", ".join(missing))
    return names


def _validation_source(options: FinetuneOptions, names: tuple[str, ...]) -> ImageSource | None:
    """The validation data; ``None`` where none was named and the training data has no such part."""
    given = options.val_data is not None
    columns = options.image_column, options.label_column
    try:
        source = open_source(
            options.val_data or options.data, options.val_split, *columns, need_split=not given
        )
    except DataError as error:
        if given:
            raise
        logger.warning("no validation data: %s", error)
        return None
    if source.class_names and source.class_names != names:
        raise DataError(
            f"the classes of the validation data, {', '.join(source.class_names[:9])}, are not "
            f"those of the training data, {', '.join(names[:9])}"
        )
    return source


def _from_scratch(options: FinetuneOptions) -> bool:
    return timm.is_model(options.model.split(".")[0]) and not options.pretrained


def _starting_model(options: FinetuneOptions, names: tuple[str, ...]) -> LoadedModel:
    """The model before training: random, from the hub, or from a file with a new head."""
    if not _from_scratch(options):
        return load_model(
            options.model, architecture=options.architecture, num_classes=len(names), r_source=0
        )
    torch.manual_seed(options.seed)
    vit = timm.create_model(options.model, num_classes=len(names), drop_path_rate=options.drop_path)
    if not isinstance(vit, VisionTransformer):
        raise CheckpointError(f"{options.model} is no VisionTransformer but {type(vit).__name__}")
    return describe(vit, options.model)


def main(argv: Sequence[str] | None = None) -> int:
    """``tocom finetune``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_options(FinetuneOptions, argv, "tocom finetune", __doc__ or "")
    command = command_line("tocom finetune", argv)
    try:
        print(finetune(options, command))
    except TocomError as error:
        print(f"tocom finetune: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
