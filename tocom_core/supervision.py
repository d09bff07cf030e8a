"""What fine-tuning minimises, and which parameters it moves."""

from collections.abc import Callable, Mapping
from typing import Literal

from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom_core.adaptformer import adapters_of
from tocom_core.compressed_vit import CompressedViT

Tuning = Literal["full", "adaptformer", "head"]


class SupervisedObjective(nn.Module):
    """Cross-entropy at one degree; with soft targets under mixup, cutmix or smoothing.

    Args:
        model: holds what learns.
        normalize: uint8 images to the model's input.
        r: tokens merged per block.
        smoothing: of the labels.
        mix: timm's mixup and cutmix, which smooths by itself.
    """

    def __init__(
        self,
        model: CompressedViT,
        normalize: Callable[[Tensor], Tensor],
        r: int,
        smoothing: float = 0.0,
        mix: Mixup | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._normalize, self._r, self._mix = normalize, r, mix
        self._soft = SoftTargetCrossEntropy()
        self._hard = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def forward(
        self, step: int, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Loss of uint8 ``(B, 3, H, W)`` images with ``(B,)`` int64 labels; nothing else to log."""
        train_mode(self.model)
        images = self._normalize(images)
        if self._mix is None:
            return self._hard(self.model(images, self._r).float(), labels), {}
        images, targets = self._mix(images, labels)
        return self._soft(self.model(images, self._r).float(), targets), {}


def choose_parameters(vit: VisionTransformer, tuning: Tuning) -> nn.Module:
    """Freeze what is not to learn.

    Args:
        vit: with its adapters and its new head.
        tuning: ``full``: everything; ``adaptformer``: adapters and head, as in the paper; ``head``:
            the head alone (a linear probe).

    Returns:
        what learns, for the optimiser and the checkpoints: ``vit`` itself, or its parts.
    """
    if tuning == "full":
        return vit.requires_grad_(True)  # type: ignore[no-any-return]
    vit.requires_grad_(False)
    head = vit.get_classifier()  # a pair, where a model has a distillation head
    parts = nn.ModuleDict({"head": nn.ModuleList(head if isinstance(head, tuple) else [head])})
    if tuning == "adaptformer":
        parts["adapters"] = nn.ModuleList(adapters_of(vit))
    return parts.requires_grad_(True)


def train_mode(model: nn.Module) -> None:
    """``train()``, but frozen batch norms keep their statistics: those are the backbone's too."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            frozen = not any(p.requires_grad for p in module.parameters())
            module.train(not frozen)
