"""One fine-tuning: from a starting model and labelled images to a tuned model and its figures."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from PIL import Image
from timm.data import Mixup
from torch import Tensor, nn

from tocom_core.adaptformer import add_adapters
from tocom_core.compressed_vit import CompressedViT
from tocom_core.data import TrainingImages, augmentation
from tocom_core.distributed import World
from tocom_core.finetune_options import FinetuneOptions
from tocom_core.image_figures import top1
from tocom_core.labelled_data import LabelledParts
from tocom_core.models import LoadedModel, load_model, pick_device
from tocom_core.predictions import predict
from tocom_core.sources import ImageSource
from tocom_core.supervision import SupervisedObjective, choose_parameters
from tocom_core.training import RunReport, TrainingLoop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """A model at the end of its training.

    Attributes:
        start: what it was loaded from; its ``vit`` is the trained one.
        report: of the loop.
        images: how many it learned from.
        figures: of the last validation of the weights that are kept.
    """

    start: LoadedModel
    report: RunReport
    images: int
    figures: Mapping[str, float]


def tune(
    options: FinetuneOptions, parts: LabelledParts, world: World, *, search: bool = False
) -> Tuned:
    """Train one model.

    Args:
        options: the recipe; the first ``adapter_scale`` is taken.
        parts: what to learn from and to judge by.
        world: the processes of this run; all of them get the same figures.
        search: the model is only trained to compare it with others: it learns from ``learned`` and
            is judged on ``held_out`` alone, as one is whose best step is looked for.

    Returns:
        the model and its figures: ``top1`` and ``loss`` (mean cross-entropy in nats) on the
        held-out images, ``test_top1`` and ``test_loss`` on the test data, each if there are any;
        ``unreadable`` and ``test_unreadable`` count images that were left out, where some were.

    Raises:
        CheckpointError, UnsupportedModelError, DataError, TrainingError: with how to mend it.
    """
    start = starting_model(options, parts)
    device = world.device(pick_device(options.device))
    model = CompressedViT(start.vit.to(device), prop_attn=options.prop_attn)
    chooses = search or options.select == "best"
    judged = {"": parts.held_out if chooses else None, "test_": None if search else parts.test}
    validate = _validation(model, start, options.r_source, judged)
    source = parts.learned if chooses else parts.training
    loop = TrainingLoop(
        choose_parameters(model.vit, options.tuning),
        SupervisedObjective(
            model, start.normalize, options.r_source, options.smoothing, _mixup(options, parts)
        ),
        TrainingImages(source, _augmentation(options, start), options.seed),
        options,
        None if search else validate,
        best="-top1" if options.select == "best" and not search else None,
        world=world,
    )
    report = loop.run()
    figures = report.final
    if world.is_main and validate and (not figures or report.best_step not in (None, loop.steps)):
        figures = validate()  # there are none of these weights from this process
    model.vit.eval()
    return Tuned(start, report, len(source), world.share(dict(figures)))


def starting_model(options: FinetuneOptions, parts: LabelledParts) -> LoadedModel:
    """The model before training: random, from the hub, or from a file; new head, new adapters.

    The head of a checkpoint is kept where it is for the same classes.
    """
    torch.manual_seed(options.seed)
    start = load_model(
        options.model,
        architecture=options.architecture,
        num_classes=len(parts.names),
        r_source=0,
        pretrained=options.pretrained,
        img_size=options.img_size,
        drop_path=options.drop_path,
    )
    names = parts.names if parts.named else start.labels
    if start.labels != names and not options.from_scratch:
        logger.info("a new head for the %d classes of the data", len(names))
        start.vit.reset_classifier(len(names))
    if options.tuning == "adaptformer":
        add_adapters(start.vit, options.bottleneck, options.adapter_scale[0])
    return replace(start, labels=names)


def _validation(
    model: CompressedViT, start: LoadedModel, r: int, judged: Mapping[str, ImageSource | None]
) -> Callable[[], Mapping[str, float]] | None:
    """Top-1 and cross-entropy at ``r`` on each part, under its prefix; ``None`` without parts."""
    sources = {prefix: source for prefix, source in judged.items() if source is not None}

    def validate() -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for prefix, source in sources.items():
            found = _figures(model, start, source, r)
            figures |= {f"{prefix}{name}": value for name, value in found.items()}
        return figures

    return validate if sources else None


def _figures(
    model: CompressedViT, start: LoadedModel, source: ImageSource, r: int
) -> dict[str, float]:
    """Figures of the images that can be read: one that cannot must not end a run that is done."""
    logits, labels = predict(model, start, source, r, skip_unreadable=True)
    figures = {
        "top1": top1(logits, labels),
        "loss": float(nn.functional.cross_entropy(logits, labels)),
    }
    left_out = len(source) - len(labels)
    if left_out:
        logger.warning(
            "%d of %d images cannot be read; the figures leave them out", left_out, len(source)
        )
        figures["unreadable"] = left_out
    return figures


def _augmentation(options: FinetuneOptions, start: LoadedModel) -> Callable[[Image.Image], Tensor]:
    return augmentation(
        start.input_size,
        start.transform_info["interpolation"],
        options.min_scale,
        options.color_jitter,
        options.auto_augment,
        options.erasing,
        start.mean,
        start.std,
    )


def _mixup(options: FinetuneOptions, parts: LabelledParts) -> Mixup | None:
    if not (options.mixup or options.cutmix):
        return None
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        label_smoothing=options.smoothing,
        num_classes=len(parts.names),
    )
