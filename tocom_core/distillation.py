"""``tocom train``: a bank by self-distillation (Token Compensator, ECCV 2024, Algorithm 1).

What is learned from is in ``self_distillation``, what it is judged by in ``pair_grid``, how it is
trained in ``training``; here an options record becomes a bank file and a report.
"""

import json
import logging
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from torch import nn

from tocom_core.bank import Bank
from tocom_core.bank_growth import GrowingBank
from tocom_core.bank_header import BankHeader
from tocom_core.bank_places import locate_bank
from tocom_core.class_matching import match_classes
from tocom_core.compressed_vit import CompressedViT
from tocom_core.data import TrainingImages, augmentation
from tocom_core.distill_options import DistillOptions
from tocom_core.distributed import World, is_main_process, joined_world
from tocom_core.errors import BankError, DataError, DivergedError, TocomError
from tocom_core.models import LoadedModel, load_model, pick_device
from tocom_core.options import command_line, parse_options
from tocom_core.pair_grid import PairGrid, as_markdown, grid_of_pairs
from tocom_core.self_distillation import (
    Classification,
    CompensatedViT,
    Distance,
    PairSampler,
    SelfDistillation,
    feature_distance,
    soft_target_divergence,
)
from tocom_core.sources import ImageSource, SubsetSource, open_pool
from tocom_core.training import RunReport, TrainingLoop

logger = logging.getLogger(__name__)

PURPOSE = (
    "Train a token compensator bank for a model by self-distillation, without labels: the model at "
    "one degree of token merging teaches itself at another. Writes bank.safetensors, report.md, "
    "train.json and a log into the output folder, and goes on where it stopped when started again."
)


def train_bank(options: DistillOptions, command: str = "") -> Path:
    """Train, and write ``bank.safetensors``, ``train.json`` and ``report.md`` into the output.

    Under ``torchrun`` every process calls this; the first one writes.

    Returns:
        the bank's file.

    Raises:
        DataError, CheckpointError, BankError, UnsupportedModelError, TrainingError: with how to
        mend it.  When a run diverges, the best bank so far is left in ``best.safetensors``.
    """
    options.check()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    with joined_world(device) as world:
        return _Run(options, world, world.device(device), command).run()


class _Run:
    """One training of a bank, from options to files."""

    def __init__(
        self, options: DistillOptions, world: World, device: torch.device, command: str
    ) -> None:
        self._options, self._world, self._command = options, world, command
        self._loaded = load_model(options.model, architecture=options.architecture)
        loaded = self._loaded
        vit = loaded.vit.to(device)
        model = CompressedViT(vit, options.method, options.prop_attn)
        self._bank = _new_bank(options, loaded, model).to(device)
        if options.loss == "l1":
            vit.head = nn.Identity()  # final features, whether or not something classifies them
        if options.num_groups > model.max_r:
            logger.warning(
                "--num-groups %d: this model can lose no more than %d tokens per layer, the groups "
                "above that will do nothing",
                *(options.num_groups, model.max_r),
            )
        student = CompensatedViT(model, self._bank, options.adapter_dropout, options.drop_path)
        training, held_out = _split(options)
        if options.loss == "cross-entropy":
            training = match_classes(training, loaded)
            _check_labels(training)
        distance = _distance(options, loaded)
        anchor = min(loaded.r_source, options.num_groups)
        learner, above, facts = self._bank, 0, {"backbone": loaded.digest}
        if isinstance(learner, GrowingBank):
            facts["init_bank"] = learner.base.digest  # it does not learn: no checkpoint holds it
            above = learner.base.num_groups
            learner = learner.top
        pairs = PairSampler(options.num_groups, anchor, options.anchor_share, above)
        grid = grid_of_pairs(options.num_groups, anchor, above)
        self._grid = (
            PairGrid(student, loaded, held_out, distance, grid, options.batch_size, options.amp)
            if held_out
            else None
        )
        images = TrainingImages(training, _transform(options, loaded), options.seed)
        self._loop = TrainingLoop(
            learner,
            _objective(options, loaded, student, distance, pairs),
            images,
            options,
            self._grid,
            "score" if self._grid else None,
            world,
            facts=facts,
            validate_first=options.init_bank is not None,
            all_learn=True,
        )
        self._images = len(images)

    def run(self) -> Path:
        """Train and write."""
        folder = self._options.output
        try:
            report = self._loop.run()
        except DivergedError:
            if self._loop.take_best() and self._world.is_main:
                self._save(folder / "best.safetensors", {"interrupted": True})
                logger.error("the best bank so far is in %s", folder / "best.safetensors")
            raise
        path = folder / "bank.safetensors"
        if self._world.is_main:
            figures = self._grid() if self._grid else {}
            if figures.get("score", 0.0) >= 1.0:
                logger.warning(
                    "the validation score is %.3f: this bank is worse than no bank; train longer, "
                    "or with a lower --lr (now %g)",
                    *(figures["score"], self._options.lr),
                )
            self._save(path, figures)
            text = _report(self._options, self._loop, report, figures, self._grid)
            (folder / "report.md").write_text(text)
            logger.info("%s", text)
        self._world.wait()
        return path

    def _save(self, path: Path, figures: Mapping[str, Any]) -> None:
        """Write the bank with what it was made of and how."""
        options = self._options
        left_out = ("output", "data", "model", "init_bank", "resume", "device", "workers")
        recipe = {k: str(v) for k, v in asdict(options).items() if k not in left_out}
        provenance = {
            "command": self._command,
            "images": self._images,
            "steps": self._loop.steps,
            "recipe": recipe,
            **figures,
        }
        bank = self._bank
        if isinstance(bank, GrowingBank):
            base = bank.base
            own = {"num_groups": base.num_groups, "digest": base.digest, **base.provenance}
            provenance["grown_from"] = own
            bank = bank.grown()
        bank.header = replace(bank.header, provenance=provenance)
        bank.save(path)
        (path.parent / "train.json").write_text(json.dumps(provenance, indent=2) + "\n")


def _new_bank(
    options: DistillOptions, loaded: LoadedModel, model: CompressedViT
) -> Bank | GrowingBank:
    """An untrained bank for the model, or the one to go on or to grow from."""
    header = BankHeader(
        arch=loaded.architecture,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_groups=options.num_groups,
        rank=options.rank,
        scaling=options.scaling,
        method=options.method,
        prop_attn=options.prop_attn,
        backbone_digest=loaded.digest,
        shared=options.shared,
        inversion=options.inversion,
    )
    generator = torch.Generator().manual_seed(options.seed)
    if options.init_bank is None:
        bank = Bank(header)
        bank.reset_parameters(generator)
        return bank
    bank = Bank.load(locate_bank(options.init_bank))
    fields = [
        "embed_dim",
        "depth",
        "rank",
        "scaling",
        "method",
        "prop_attn",
        "shared",
        "inversion",
    ]
    wrong = [
        f"{name}: {getattr(bank.header, name)} there, {getattr(header, name)} here"
        for name in fields
        if getattr(bank.header, name) != getattr(header, name)
    ]
    if bank.num_groups > header.num_groups:
        wrong.append(f"num_groups: {bank.num_groups} there, {header.num_groups} here")
    if wrong:
        raise BankError(
            f"{options.init_bank} cannot be gone on from with this model and these options "
            f"({'; '.join(wrong)}); give the options it was made with, or start without it"
        )
    if bank.num_groups < header.num_groups:
        return GrowingBank(bank, header, generator)
    bank.header = header
    return bank


def _distance(options: DistillOptions, loaded: LoadedModel) -> Distance:
    """What the student is measured by."""
    headless = loaded.vit.num_classes < 1
    if headless and options.loss in ("kl", "cross-entropy"):
        raise DataError(
            f"{options.model} has no classifier, so --loss {options.loss} means nothing; use "
            "--loss l1, or give a fine-tuned model"
        )
    if options.loss == "l1" or (headless and options.loss == "auto"):
        return feature_distance
    return soft_target_divergence(options.temperature)


def _objective(
    options: DistillOptions,
    loaded: LoadedModel,
    student: CompensatedViT,
    distance: Distance,
    pairs: PairSampler,
) -> nn.Module:
    """What a step minimises."""
    mixup = None
    if options.mixup or options.cutmix:
        classes = max(1, loaded.vit.num_classes)
        mixup = Mixup(options.mixup, options.cutmix, label_smoothing=0.0, num_classes=classes)
    if options.loss == "cross-entropy":
        return Classification(student, loaded.normalize, pairs, mixup)
    return SelfDistillation(student, loaded.normalize, pairs, distance, mixup)


def _transform(options: DistillOptions, loaded: LoadedModel) -> Any:
    return augmentation(
        loaded.input_size,
        loaded.transform_info["interpolation"],
        options.min_scale,
        options.color_jitter,
        options.auto_augment,
        options.erasing,
        loaded.mean,
        loaded.std,
    )


def _split(options: DistillOptions) -> tuple[ImageSource, ImageSource | None]:
    """Hold out evenly spread images for validation."""
    labels = options.label_column if options.loss == "cross-entropy" else None
    source = open_pool(options.data, options.split, options.image_column, labels)
    if not options.val_images:
        return source, None
    if options.val_images >= len(source) // 2:
        raise DataError(
            f"--val-images {options.val_images} is too many of {len(source)} images; "
            "hold out less than half"
        )
    held_out = set(torch.linspace(0, len(source) - 1, options.val_images).long().tolist())
    rest = [index for index in range(len(source)) if index not in held_out]
    return SubsetSource(source, rest), SubsetSource(source, sorted(held_out))


def _check_labels(source: ImageSource) -> None:
    """Cross-entropy needs a label for every image."""
    for index in range(len(source)):
        if source.label(index) is None:
            raise DataError(
                f"{source.name(index)} has no label, but --loss cross-entropy needs one for every "
                "image; use --loss kl, which needs none"
            )


def _report(
    options: DistillOptions,
    loop: TrainingLoop,
    report: RunReport,
    figures: Mapping[str, float],
    grid: PairGrid | None,
) -> str:
    """The end of a run, for people."""
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    lines = [
        f"# Bank for {options.model}",
        "",
        f"- {report.steps} steps of {loop.images_per_step} images, {report.seconds / 60:.1f} min "
        "in the last part of the run",
        f"- peak learning rate {loop.peak_lr:g}; most memory of one process {peak / 2**20:.2f} GiB",
        f"- unreadable images passed over: {report.skipped}",
    ]
    if grid is not None:
        kept = "last" if report.best_step is None else f"best, of step {report.best_step},"
        lines += [
            f"- the {kept} weights were kept; score {figures['score']:.3f} (1: no bank) over the "
            f"grid below, {grid.count} held-out images",
            "",
            as_markdown(figures, grid.pairs),
        ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """``tocom train``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_options(DistillOptions, argv, "tocom train", PURPOSE)
    command = command_line("tocom train", argv)
    try:
        path = train_bank(options, command)
        if is_main_process():
            print(path)
    except TocomError as error:
        print(f"tocom train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
