"""How accurate a model is at a degree, how close to its uncompressed self, and how fast.

The reference, to which losses, agreement and KL are counted, is the model with its own weights at
its own degree ``r_source``: for a model fine-tuned without compression that is the uncompressed
model.  What it would do at a degree it was not tuned for is no truth to be close to.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tocom_core.accuracy_report import as_markdown, stored_table, write_report
from tocom_core.accuracy_rows import accuracy_rows
from tocom_core.bank import Bank
from tocom_core.bank_places import on_hub
from tocom_core.bootstrap import Interval, paired_bootstrap
from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import CheckpointError, DegreeError, TocomError
from tocom_core.evaluation_images import ImagePlace, JudgingImages, open_images, validation_images
from tocom_core.image_figures import kl_divergence, top1
from tocom_core.models import (
    LoadedModel,
    default_model_path,
    find_bank,
    load_model,
    pick_device,
    store_evaluation,
)
from tocom_core.options import option, parse_options
from tocom_core.predictions import MEND, Variant, VariantRunner, predict
from tocom_core.scaling_search import Pair, parse_scalings, search_scaling
from tocom_core.schedule import arithmetic_ratio, count_macs
from tocom_core.throughput import device_name, measure_speed, noise

__all__ = [
    "EvaluateOptions",
    "Interval",
    "as_markdown",
    "evaluate",
    "kl_divergence",
    "paired_bootstrap",
    "predict",
    "top1",
]

logger = logging.getLogger(__name__)

ADVICE = f"{MEND}, or let --skip-unreadable count such images and leave them out"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``tocom evaluate``."""

    model: str = option("default", help="default, a timm name, or a checkpoint")
    architecture: str | None = option(None, help="timm name, for a checkpoint that does not say it")
    bank: str = option(
        "auto",
        help="a bank (file, folder or hf-hub:owner/name), none, or auto: the one beside the model, "
        "or shipped for it",
    )
    data: str = option(
        help="images, labelled or not: a folder, parquet files, WebDataset shards (.tar; several "
        "by braces: test-{000..010}.tar), or hub:owner/name"
    )
    split: str | None = option(
        "test",
        help="part of them: the sub-folder of this name, or the parquet files or shards with this "
        "word in their path; all images where there are no parts",
    )
    image_column: str = option("image", help="parquet column of the images")
    label_column: str = option("label", help="parquet column of the class indices")
    skip_unreadable: bool = option(
        False, help="count images that cannot be read and leave them out, instead of stopping"
    )
    r_source: tuple[int, ...] | None = option(
        None, help="degrees the model counts as fine-tuned at; default: what its file says"
    )
    r_target: tuple[int, ...] = option((0, 4, 8, 12, 16), help="degrees to evaluate")
    scaling: tuple[str, ...] | None = option(
        None,
        help="factors on the bank's deltas, or search for the paper's; of several the best on "
        "validation images is taken; default: the bank's own",
    )
    scaling_per_degree: bool = option(False, help="choose a scaling for each degree, not one")
    val_data: str | None = option(None, help="images to choose the scaling on; default: as --data")
    val_split: str | None = option(
        None, help="part of them, as --split; default: val, valid, validation or train"
    )
    val_images: int = option(1000, help="at most so many of them, at random; 0 is all")
    prop_attn: bool | None = option(
        None,
        help="proportional attention; default: as the model was fine-tuned, else as the bank was "
        "trained, else on",
    )
    batch_size: int = option(64, help="images per forward pass")
    throughput_batch: int = option(32, help="images per forward pass when speed is measured")
    throughput_seconds: float = option(2.0, help="time spent on each degree's speed; 0: none")
    device: str = option("auto", help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    threads: int = option(0, help="CPU threads; 0 leaves it to PyTorch")
    output: Path | None = option(
        None, help="also write evaluation.json, .csv, .md and plots into this folder"
    )
    store: bool = option(False, help="write the table into the model file's header for the server")


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Accuracy at each degree, without and with the bank, on the same images.

    Returns:
        a table that is plain JSON: ``rows`` as in ``accuracy_rows`` with, for each degree,
        ``gflops`` (2 per multiply-add, one image), ``arithmetic_ratio`` (to r=0) and, if timed,
        ``images_per_s`` and ``speedup`` (to r=0; median and quartiles); around them what was
        evaluated (``model``, ``bank``, ``data``, ``images``, ``skipped_images``, ``labelled``, …),
        ``scaling_search`` and ``throughput`` (each ``None`` if there was none) and ``notes``.

    Raises:
        DataError, CheckpointError, BankError, DeviceError, ScheduleError: with how to mend it.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    subject = _prepare(options)
    pairs = _pairs(options, subject)
    costs = {r: _arithmetic(subject.runner.model, r) for _, r in pairs}
    chosen, search = _choose_scaling(subject, pairs, options)
    shown = [Variant(*pair, s) for pair in pairs for s in (None, chosen.get(pair))]
    shown = list(dict.fromkeys(shown))  # where the bank does not reach, plain merging alone
    references = [Variant(r_source, r_source) for r_source, _ in pairs]
    variants = list(dict.fromkeys([*shown, *references]))
    figures = subject.runner.figures(subject.images.source, variants)
    images = len(figures[shown[0]])
    timing, notes = _time(subject, costs, options)
    return {
        **_facts(subject, options),
        "images": images,
        "skipped_images": len(subject.images.source) - images,
        "rows": accuracy_rows(shown, figures, costs, labelled=subject.images.labelled),
        "scaling_search": search,
        "throughput": timing,
        "notes": notes,
    }


@dataclass(frozen=True)
class _Subject:
    """What is evaluated."""

    loaded: LoadedModel
    bank: Bank | None
    bank_name: str
    images: JudgingImages
    runner: VariantRunner


def _prepare(options: EvaluateOptions) -> _Subject:
    """Load everything, so that what does not fit together is told before the first image."""
    loaded = load_model(options.model, architecture=options.architecture)
    if not loaded.vit.num_classes:
        raise CheckpointError(f"{loaded.name} has no classifier; evaluate a model with a head")
    place = ImagePlace(options.data, options.split, options.image_column, options.label_column)
    images = open_images(place, loaded)
    if not images.labelled:
        logger.info("%s has no labels: agreement and KL are reported, accuracy is not", place.short)
    if images.place.split != options.split:
        logger.warning(
            "%s has no part named %r: all its %d images are taken, also those for training if "
            "there are any",
            *(place.short, options.split, len(images.source)),
        )
    path = find_bank(options.model, options.bank, loaded)
    bank = None if path is None else Bank.load(path)
    prop_attn = loaded.choose_prop_attn(options.prop_attn, bank)
    vit = loaded.vit.to(pick_device(options.device))
    model = CompressedViT(vit, bank.method if bank else "merge", prop_attn)
    runner = VariantRunner(
        model, loaded, bank, options.batch_size, options.skip_unreadable, advice=ADVICE
    )
    return _Subject(loaded, bank, _bank_name(options.bank, path), images, runner)


def _facts(subject: _Subject, options: EvaluateOptions) -> dict[str, Any]:
    """What was evaluated, for the table."""
    loaded, bank, model = subject.loaded, subject.bank, subject.runner.model
    return {
        "model": loaded.name,
        "architecture": loaded.architecture,
        "digest": loaded.digest,
        "r_source": loaded.r_source,
        "bank": None if bank is None else _bank_facts(bank, subject.bank_name),
        "method": model.method,
        "prop_attn": model.prop_attn,
        "data": subject.images.place.short,
        "split": subject.images.place.split,
        "labelled": subject.images.labelled,
    }


def _bank_name(given: str, path: Path | None) -> str:
    """What the table calls the bank: its repository, or what tells its file from others."""
    if path is None:
        return ""
    return given if on_hub(given) else _short(path)


def _short(path: Path) -> str:
    """What tells a file from others: its folder's name, if its own is that of all."""
    return path.absolute().parent.name if path.stem == "bank" else path.stem


def _bank_facts(bank: Bank, name: str) -> dict[str, Any]:
    sizes = {"num_groups": bank.num_groups, "rank": bank.rank, "scaling": bank.scaling}
    return {"name": name, "digest": bank.digest, **sizes}


def _pairs(options: EvaluateOptions, subject: _Subject) -> list[Pair]:
    """The degrees to evaluate; the bank must reach those that the model counts as tuned at."""
    sources = options.r_source or (subject.loaded.r_source,)
    if subject.bank is not None:
        for r_source in sources:
            try:
                subject.bank.check_degree(r_source, "r_source")
            except DegreeError as error:
                raise DegreeError(
                    f"{error}; give --r-source degrees that it covers, or --bank none to "
                    "evaluate without it"
                ) from error
    return list(dict.fromkeys((own, r) for own in sources for r in options.r_target))


def _arithmetic(model: CompressedViT, r: int) -> dict[str, Any]:
    macs = count_macs(model.shape, r, model.method)
    return {"gflops": 2 * macs / 1e9, "arithmetic_ratio": arithmetic_ratio(model, r)}


def _choose_scaling(
    subject: _Subject, pairs: Sequence[Pair], options: EvaluateOptions
) -> tuple[Mapping[Pair, float], dict[str, Any] | None]:
    """The scaling of each pair that the bank reaches, and how it was found if it was searched."""
    bank = subject.bank
    if bank is None:
        return {}, None
    scalings = parse_scalings(options.scaling, bank.scaling)
    reached = [pair for pair in pairs if pair[1] <= bank.num_groups]
    if len(scalings) == 1:
        return dict.fromkeys(reached, scalings[0]), None
    place = replace(
        subject.images.place,
        data=options.val_data or options.data,
        split=options.val_split,
        need_split=options.val_split is not None,
    )
    validation = validation_images(place, subject.images, subject.loaded, options.val_images)
    per_degree = options.scaling_per_degree
    search = search_scaling(subject.runner, validation, reached, scalings, per_degree=per_degree)
    told = {"data": str(validation.place), "images": search.images, "rows": search.rows}
    return search.chosen, told


def _time(
    subject: _Subject, costs: Mapping[int, dict[str, Any]], options: EvaluateOptions
) -> tuple[dict[str, Any] | None, list[str]]:
    """Add each degree's speed to its costs; how that was measured, and what to think of it."""
    if options.throughput_seconds <= 0:
        return None, []
    model, batch = subject.runner.model, options.throughput_batch
    size = subject.loaded.input_size
    speed = measure_speed(model, list(costs), size, batch, options.throughput_seconds)
    for r, cost in costs.items():
        cost["images_per_s"] = speed[r].images_per_s.as_list()
        cost["speedup"] = speed[r].speedup.as_list()
    told = {
        "batch": batch,
        "seconds_per_degree": options.throughput_seconds,
        "device": device_name(next(model.parameters()).device),
        "torch": str(torch.__version__),
    }
    warning = noise(speed)
    return told, [] if warning is None else [warning]


def main(argv: Sequence[str] | None = None) -> int:
    """``tocom evaluate``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_options(EvaluateOptions, argv, "tocom evaluate", __doc__ or "")
    try:
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)  # better now than after the run
        table = evaluate(options)
        print(as_markdown(table))
        for note in table["notes"]:
            print(f"\n{note}")
        if options.output:
            write_report(options.output, table)
        if options.store:
            path = default_model_path() if options.model == "default" else Path(options.model)
            store_evaluation(path, stored_table(table))
    except (TocomError, OSError) as error:
        print(f"tocom evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
