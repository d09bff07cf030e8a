"""Train a bank by self-distillation (Token Compensator, ECCV 2024, Algorithm 1).

The backbone is frozen.  Each step draws two degrees ``m ≠ n``; the backbone at ``r=m`` teaches the
same backbone at ``r=n`` with ``ΔW(m → n)`` added to its query and value weights.  Only the bank
learns, and no label is needed.
"""

import json
import logging
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tocom_core.bank import Bank
from tocom_core.bank_header import BankHeader
from tocom_core.compressed_vit import CompressedViT
from tocom_core.data import TrainingImages, augmentation, evaluation_batches
from tocom_core.errors import DataError, TocomError
from tocom_core.evaluation import kl_divergence
from tocom_core.models import LoadedModel, load_model, pick_device
from tocom_core.options import command_line, option, parse_options
from tocom_core.schedule import Method
from tocom_core.sources import ImageSource, SubsetSource, open_source
from tocom_core.training import LoopOptions, TrainingLoop

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DistillOptions(LoopOptions):
    """Options of ``tocom train``."""

    data: str = option(help="folder of images, parquet, or hub:owner/name; labels are not used")
    split: str | None = option(None, help="only parquet files whose name holds this")
    image_column: str = option("image", help="parquet column of the images")
    model: str = option(help="the backbone: a timm name or a checkpoint")
    architecture: str | None = option(None, help="timm name, for a checkpoint that does not say it")
    num_groups: int = option(16, help="K, the highest degree that is compensated")
    rank: int = option(2, help="h, rank of each group")
    scaling: float = option(0.1, help="s, the factor on every delta")
    method: Method = option("merge", help="how tokens are removed")
    prop_attn: bool = option(True, help="proportional attention")
    temperature: float = option(1.0, help="of the soft targets")
    lr: float = option(4e-3, help="peak learning rate of AdamW")
    val_images: int = option(512, help="images held out for the validation loss; 0 for none")
    min_scale: float = option(0.5, help="smallest area of a random crop")
    color_jitter: float = option(0.2, help="strength of colour jitter")


class CompensatedViT(nn.Module):
    """A frozen model whose query and value weights get a bank's deltas, differentiably.

    Serving folds the deltas into the live weights (``WeightMerger``); training must not touch them,
    so here each forward pass is given its own sum.

    Args:
        model: the frozen backbone.
        bank: what learns.
    """

    def __init__(self, model: CompressedViT, bank: Bank) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.bank = bank

    def forward(self, images: Tensor, r_source: int, r_target: int) -> Tensor:
        """Logits ``(B, C)`` at ``r_target`` with ``ΔW(r_source → r_target)``."""
        dim = self.model.embed_dim
        weights = {}
        for layer in range(self.bank.depth):
            name = f"vit.blocks.{layer}.attn.qkv.weight"
            pristine = self.model.get_parameter(name)
            with torch.autocast(pristine.device.type, enabled=False):  # as serving merges them
                query, value = self.bank.layer_delta(layer, r_source, r_target)
            zero = torch.zeros_like(pristine[dim : 2 * dim])
            weights[name] = pristine + torch.cat([query, zero, value])
        logits: Tensor = functional_call(self.model, weights, (images, r_target))
        return logits


class SelfDistillation:
    """The loss of one step of Algorithm 1.

    Args:
        student: the backbone with the bank.
        loaded: for normalisation.
        temperature: of the soft targets.
    """

    def __init__(self, student: CompensatedViT, loaded: LoadedModel, temperature: float) -> None:
        self._student, self._loaded, self._temperature = student, loaded, temperature

    def __call__(
        self, step: int, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Draw ``m ≠ n`` (the loop has seeded the generators) and compare."""
        r_source, r_target = random.sample(range(self._student.bank.num_groups + 1), 2)
        images = self._loaded.normalize(images)
        with torch.no_grad():
            teacher = self._student.model(images, r_source)
        student = self._student(images, r_source, r_target)
        loss = soft_target_loss(teacher.float(), student.float(), self._temperature)
        return loss, {"r_source": r_source, "r_target": r_target}


def soft_target_loss(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over images of ``T² · KL(softmax(teacher/T) ‖ softmax(student/T))``; scalar."""
    scaled = kl_divergence(teacher / temperature, student / temperature)
    return temperature**2 * scaled.mean()


def train_bank(options: DistillOptions, command: str = "") -> Path:
    """Train, and write ``bank.safetensors`` into the output folder.

    Returns:
        the bank's file.

    Raises:
        DataError, CheckpointError, BankError, UnsupportedModelError, TrainingError: with how to
        mend it.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load_model(options.model, architecture=options.architecture)
    if loaded.vit.num_classes < 1:
        raise DataError(f"{options.model} has no classifier to distil; give a fine-tuned model")
    device = pick_device(options.device)
    model = CompressedViT(loaded.vit.to(device), options.method, options.prop_attn).eval()
    bank = Bank(_header(options, loaded, model))
    bank.reset_parameters(torch.Generator().manual_seed(options.seed))
    bank.to(device)
    student = CompensatedViT(model, bank)
    training, held_out = _split(options)
    validation = _Validation(student, loaded, held_out) if held_out else None
    objective = SelfDistillation(student, loaded, options.temperature)
    transform = augmentation(
        loaded.input_size,
        loaded.transform_info["interpolation"],
        options.min_scale,
        options.color_jitter,
    )
    images = TrainingImages(training, transform, options.seed)
    TrainingLoop(bank, images, options, objective, validation).run()

    figures = validation() if validation else {}
    recipe = {k: str(v) for k, v in asdict(options).items() if k not in ("output", "data", "model")}
    provenance = {"command": command, "images": len(training), "recipe": recipe, **figures}
    bank.header = _header(options, loaded, model, provenance)
    path = options.output / "bank.safetensors"
    bank.save(path)
    (options.output / "train.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return path


def _header(
    options: DistillOptions,
    loaded: LoadedModel,
    model: CompressedViT,
    provenance: Mapping[str, object] | None = None,
) -> BankHeader:
    return BankHeader(
        arch=loaded.architecture,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_groups=options.num_groups,
        rank=options.rank,
        scaling=options.scaling,
        method=options.method,
        prop_attn=options.prop_attn,
        backbone_digest=loaded.digest,
        provenance=dict(provenance or {}),
    )


class _Validation:
    """Mean KL to the uncompressed model over fixed images and degrees, with and without the bank.

    The loss of random pairs is far too noisy to judge a run by; this is not.
    """

    def __init__(self, student: CompensatedViT, loaded: LoadedModel, source: ImageSource) -> None:
        self._student, self._loaded, self._source = student, loaded, source
        groups = student.bank.num_groups
        self._degrees = sorted({max(1, groups * quarter // 4) for quarter in (1, 2, 3, 4)})
        self._plain: dict[str, float] = {}

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        if not self._plain:
            self._plain = {f"plain_kl_r{r}": self._mean_kl(r, False) for r in self._degrees}
        figures = {f"kl_r{r}": self._mean_kl(r, True) for r in self._degrees}
        mean = sum(figures.values()) / len(figures)
        plain = sum(self._plain.values()) / len(self._plain)
        return {"kl": mean, "plain_kl": plain, **figures, **self._plain}

    def _mean_kl(self, r: int, with_bank: bool) -> float:
        device = next(self._student.parameters()).device
        distances = []
        for images, _ in evaluation_batches(self._source, self._loaded.transform, 64):
            x = self._loaded.normalize(images.to(device))
            reference = self._student.model(x, 0)
            logits = self._student(x, 0, r) if with_bank else self._student.model(x, r)
            distances.append(kl_divergence(reference.float(), logits.float()))
        return float(torch.cat(distances).mean())


def _split(options: DistillOptions) -> tuple[ImageSource, ImageSource | None]:
    """Hold out evenly spread images for validation."""
    source = open_source(options.data, options.split, options.image_column)
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


def main(argv: Sequence[str] | None = None) -> int:
    """``tocom train``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_options(DistillOptions, argv, "tocom train", __doc__ or "")
    command = command_line("tocom train", argv)
    try:
        print(train_bank(options, command))
    except TocomError as error:
        print(f"tocom train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
