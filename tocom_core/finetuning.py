"""Supervised training of a model at some ``r_source``: from scratch or from a checkpoint.

All weights learn, or only adapters and head (AdaptFormer), or the head alone.  The result is an
ordinary model file; a bank for its backbone then serves it at other degrees.
"""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tocom_core.adapter_search import search_scale
from tocom_core.distributed import World, joined_world
from tocom_core.errors import DataError, DivergedError, TocomError
from tocom_core.finetune_options import FinetuneOptions
from tocom_core.labelled_data import (
    LabelledParts,
    at_most,
    check_test_labels,
    class_names,
    hold_out,
    warn_of_empty_classes,
)
from tocom_core.models import LoadedModel, load_model, pick_device, save_model
from tocom_core.options import command_line, parse_options
from tocom_core.sources import ImageSource, open_source
from tocom_core.tuning import Tuned, tune

__all__ = ["FinetuneOptions", "finetune", "main"]

logger = logging.getLogger(__name__)


def finetune(options: FinetuneOptions, command: str = "") -> Path:
    """Train, and write ``model.safetensors`` and ``finetune.json`` into the output folder.

    Under ``torchrun`` every process calls this; the first one writes.

    Returns:
        the model file.

    Raises:
        DataError, CheckpointError, UnsupportedModelError, TrainingError: with how to mend it.
    """
    options.check()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    with joined_world(device) as world:
        parts = _open_parts(options)
        table: list[dict[str, float | None]] = []
        chosen = options
        if options.searches:
            scale, table = _find_scale(options, parts, world)
            chosen = replace(options, adapter_scale=(scale,))
        tuned = tune(chosen, parts, world)
        path = options.output / "model.safetensors"
        if world.is_main:
            _write(path, chosen, tuned, parts, {"command": command, "scale_search": table})
        world.wait()
    return path


def _find_scale(
    options: FinetuneOptions, parts: LabelledParts, world: World
) -> tuple[float, list[dict[str, float | None]]]:
    """The best of the adapters' scales, and how each did."""
    epochs = options.search_epochs or max(1.0, options.epochs / 10)
    epochs = min(epochs, options.epochs)
    shorter = replace(
        options,
        epochs=epochs,
        warmup_steps=round(options.warmup_steps * epochs / options.epochs),
        validate_every=0.0,
    )

    def judge(scale: float) -> Mapping[str, float]:
        folder = options.output / "search" / f"scale-{scale:g}"
        candidate = replace(shorter, adapter_scale=(scale,), output=folder)
        try:
            return tune(candidate, parts, world, search=True).figures
        except DivergedError as error:
            logger.warning("adapter scale %g is out: %s", scale, error)
            return {"top1": 0.0, "loss": math.nan}

    return search_scale(options.adapter_scale, judge, options.lr)


def _write(
    path: Path,
    options: FinetuneOptions,
    tuned: Tuned,
    parts: LabelledParts,
    provenance: Mapping[str, Any],
) -> None:
    """Write the model file and, beside it, where it comes from."""
    provenance = {**provenance, **_provenance(options, tuned, parts)}
    save_model(
        path,
        tuned.start.vit.cpu(),
        tuned.start.labels,
        dtype=getattr(torch, options.store_dtype),
        model_args=tuned.start.model_args,
        tocom={
            "r_source": options.r_source,
            "prop_attn": options.prop_attn,
            "trained_from": _origin(options, tuned.start),
            "provenance": provenance,
        },
    )
    text = json.dumps(provenance, indent=2, allow_nan=False)
    (path.parent / "finetune.json").write_text(text + "\n")


def _provenance(options: FinetuneOptions, tuned: Tuned, parts: LabelledParts) -> dict[str, Any]:
    """What somebody needs to know who reads a figure, or wants to get it again."""
    best = options.select == "best"
    figures = {k: v if math.isfinite(v) else None for k, v in tuned.figures.items()}
    unreadable = {k: int(figures.pop(k, 0) or 0) for k in ("unreadable", "test_unreadable")}
    test = None
    if parts.test is not None:
        images = len(parts.test) - unreadable["test_unreadable"]
        test = {"split": options.test_split, "images": images}
    left_out = ("output", "data", "model", "test_data", "workers", "threads", "resume")
    return {
        "seed": options.seed,
        "images": tuned.images,
        "held_out": 0 if parts.held_out is None else len(parts.held_out),
        "selected_by": "top1 on held-out training images" if best else "nothing: the last weights",
        "test": test,
        "steps": tuned.report.steps,
        "best_step": tuned.report.best_step,
        "skipped": tuned.report.skipped,
        "recipe": {k: str(v) for k, v in asdict(options).items() if k not in left_out},
        **unreadable,
        **figures,
    }


def _origin(options: FinetuneOptions, start: LoadedModel) -> str | None:
    """Digest of the backbone as its checkpoint has it, which is what its bank was trained on."""
    if options.from_scratch:
        return None
    if options.img_size is None:
        return start.digest
    return load_model(options.model, architecture=options.architecture).digest


def _open_parts(options: FinetuneOptions) -> LabelledParts:
    """Open the data, and hold images out if something is to be chosen."""
    columns = options.image_column, options.label_column
    source = open_source(options.data, options.split, *columns)
    names = class_names(source)
    training = at_most(source, options.train_images, options.seed)
    warn_of_empty_classes(training, names)
    learned, held_out = training, None
    if options.searches or options.select == "best":
        learned, held_out = hold_out(training, options.val_images, options.seed)
    test = _test_source(options, names)
    return LabelledParts(names, bool(source.class_names), training, learned, held_out, test)


def _test_source(options: FinetuneOptions, names: tuple[str, ...]) -> ImageSource | None:
    """The test data; ``None`` where none was named and the training data has no such part."""
    given = options.test_data is not None
    columns = options.image_column, options.label_column
    try:
        source = open_source(
            options.test_data or options.data, options.test_split, *columns, need_split=not given
        )
    except DataError as error:
        if given:
            raise
        logger.warning("no test data: %s", error)
        return None
    check_test_labels(source, names)
    return at_most(source, options.test_images, options.seed)


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
