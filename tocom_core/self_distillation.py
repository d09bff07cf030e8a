"""What a bank learns from (Token Compensator, ECCV 2024, section 3.3, Algorithm 1).

The backbone is frozen.  Each step draws two degrees ``m ≠ n``; the backbone at ``r=m`` teaches the
same backbone at ``r=n`` with ``ΔW(m → n)`` added to its query and value weights.  Only the bank
learns, and no label is needed.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.data import Mixup
from timm.layers import DropPath
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import sdpa_kernel
from torch.utils.hooks import RemovableHandle

from tocom_core.attention import FUSED_KERNELS
from tocom_core.bank import Bank
from tocom_core.bank_growth import GrowingBank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.evaluation import kl_divergence

LossName = Literal["auto", "kl", "l1", "cross-entropy"]
Distance = Callable[[Tensor, Tensor], Tensor]
"""Teacher's and student's outputs ``(B, C)`` to one figure per image ``(B,)``."""


class CompensatedViT(nn.Module):
    """A frozen model whose query and value weights get a bank's deltas, differentiably.

    Serving folds the deltas into the live weights (``WeightMerger``); training must not touch them,
    so here each forward pass is given its own sum.

    In training mode only the two kinds of chance that are asked for act.  The backbone itself stays
    in evaluation mode: a batch norm in its stem would otherwise forget what it was trained with.

    Args:
        model: the frozen backbone.
        bank: what learns.
        dropout: rate of dropout between ``A`` and ``B``.  It acts on every token, so the adapters
            then run beside the weights instead of being summed into them.
        drop_path: rate of stochastic depth, see ``set_drop_path``.
    """

    def __init__(
        self,
        model: CompressedViT,
        bank: Bank | GrowingBank,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.bank = bank
        self.dropout = dropout
        self._drop_paths = set_drop_path(model, drop_path)

    def train(self, mode: bool = True) -> "CompensatedViT":
        """Switch dropout and stochastic depth on or off; the backbone stays as it is."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, images: Tensor, r_source: int, r_target: int) -> Tensor:
        """Logits ``(B, C)`` at ``r_target`` with ``ΔW(r_source → r_target)``."""
        with self._stochastic_depth():
            if self.training and self.dropout:
                with self._adapters(r_source, r_target):
                    return self.model(images, r_target)  # type: ignore[no-any-return]
            return self._with_summed_weights(images, r_source, r_target)

    def _with_summed_weights(self, images: Tensor, r_source: int, r_target: int) -> Tensor:
        weights = {
            f"vit.blocks.{layer}.attn.qkv.weight": self._compensated(layer, r_source, r_target)
            for layer in range(self.bank.depth)
        }
        logits: Tensor = functional_call(self.model, weights, (images, r_target))
        return logits

    def _compensated(self, layer: int, r_source: int, r_target: int) -> Tensor:
        """Query, key and value weight ``(3D, D)`` of one layer, with the delta."""
        pristine = self.model.get_parameter(f"vit.blocks.{layer}.attn.qkv.weight")
        return pristine + self._delta(layer, r_source, r_target)

    def _delta(self, layer: int, r_source: int, r_target: int) -> Tensor:
        """``ΔW`` of one layer in float32, as serving merges it; zero rows for the key."""
        with torch.autocast(next(self.bank.parameters()).device.type, enabled=False):
            query, value = self.bank.layer_delta(layer, r_source, r_target)
        return torch.cat([query, torch.zeros_like(query), value])

    @contextmanager
    def _stochastic_depth(self) -> Iterator[None]:
        """In training mode, let the student's blocks be dropped; the teacher's never are."""
        for drop_path in self._drop_paths:
            drop_path.train(self.training)
        try:
            yield
        finally:
            for drop_path in self._drop_paths:
                drop_path.eval()

    @contextmanager
    def _adapters(self, r_source: int, r_target: int) -> Iterator[None]:
        """Run each layer's adapters beside its weights, with dropout between ``A`` and ``B``."""
        handles: list[RemovableHandle] = []
        for layer, block in enumerate(self.model.vit.blocks):
            factors = self.bank.layer_factors(layer, r_source, r_target)
            handles.append(block.attn.qkv.register_forward_hook(self._beside(factors)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _beside(
        self, factors: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Callable[[Any, Any, Tensor], Tensor]:
        """A hook that adds ``B · dropout(A x)`` to the query and the value of a layer's output."""

        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            x = inputs[0]
            (query, value) = (
                functional.dropout(x @ down.mT, self.dropout) @ up.mT for down, up in factors
            )
            return output + torch.cat([query, torch.zeros_like(query), value], dim=-1)

        return add


@dataclass(frozen=True)
class PairSampler:
    """Draws ``(m, n)``: the teacher's and the student's degree.

    Algorithm 1 draws uniformly.  But a bank is used from the degree that models are fine-tuned at,
    nearly always 0, and only one pair in 17 starts there; drawing a share of the pairs from it is
    importance sampling of what will be asked for.

    Attributes:
        num_groups: ``K``.
        anchor: the degree that a share of the pairs starts from.
        anchor_share: that share; 0 is the paper's uniform draw.
        above: one of the two degrees lies above this one; where only such groups learn, other
            pairs teach nothing.
    """

    num_groups: int
    anchor: int = 0
    anchor_share: float = 0.0
    above: int = 0

    def __call__(self) -> tuple[int, int]:
        """One pair ``m ≠ n`` out of ``0…K``, from Python's generator."""
        degrees = range(self.num_groups + 1)
        if random.random() < self.anchor_share:
            others = [n for n in degrees if n != self.anchor and max(n, self.anchor) > self.above]
            return self.anchor, random.choice(others)
        while True:
            first, second = random.sample(degrees, 2)
            if max(first, second) > self.above:
                return first, second


def soft_target_divergence(temperature: float = 1.0) -> Distance:
    """``T² · KL(softmax(teacher/T) ‖ softmax(student/T))`` of each image."""

    def distance(teacher: Tensor, student: Tensor) -> Tensor:
        return temperature**2 * kl_divergence(teacher / temperature, student / temperature)

    return distance


def feature_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean absolute difference of each image's final features: for backbones without a head."""
    return (teacher - student).abs().mean(dim=-1)


class SelfDistillation(nn.Module):
    """The loss of one step of Algorithm 1.

    Args:
        student: the backbone with the bank.
        normalize: uint8 images to the model's input.
        pairs: draws ``m ≠ n``; the loop has seeded the generators.
        distance: between teacher and student, image by image.
        mixup: mixes images; their labels do not matter.

    Each forward pass draws a pair: with gradients accumulated over several passes, a step learns
    from as many pairs, and is less noisy at the same cost.
    """

    def __init__(
        self,
        student: CompensatedViT,
        normalize: Callable[[Tensor], Tensor],
        pairs: Callable[[], tuple[int, int]],
        distance: Distance,
        mixup: Mixup | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self._normalize, self._pairs, self._distance = normalize, pairs, distance
        self._mixup = mixup

    def forward(
        self, step: int, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Mean distance of the student at ``n`` to the teacher at ``m``; labels are not looked at.

        The pair is drawn first, so that all processes of a run draw the same one.
        """
        r_source, r_target = self._pairs()
        images = self._normalize(images)
        if self._mixup is not None:
            images, _ = self._mixup(images, torch.zeros_like(labels))
        with torch.no_grad(), sdpa_kernel(FUSED_KERNELS):
            teacher = self.student.model(images, r_source)
        self.student.train(self.training)  # a validation may have turned chance off
        student = self.student(images, r_source, r_target)
        return self._distance(teacher.float(), student.float()).mean(), {}


class Classification(nn.Module):
    """The paper's ablation: the true classes teach instead of the backbone (its table 6).

    Arguments as in ``SelfDistillation``; ``mixup`` also mixes the labels.
    """

    def __init__(
        self,
        student: CompensatedViT,
        normalize: Callable[[Tensor], Tensor],
        pairs: Callable[[], tuple[int, int]],
        mixup: Mixup | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self._normalize, self._pairs, self._mixup = normalize, pairs, mixup

    def forward(
        self, step: int, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Mean cross-entropy of the student at ``n`` with ``ΔW(m → n)``."""
        r_source, r_target = self._pairs()
        images = self._normalize(images)
        targets: Tensor = labels
        if self._mixup is not None:
            images, targets = self._mixup(images, labels)
        self.student.train(self.training)  # a validation may have turned chance off
        logits = self.student(images, r_source, r_target).float()
        return functional.cross_entropy(logits, targets), {}


def set_drop_path(model: CompressedViT, rate: float) -> list[DropPath]:
    """Give the blocks stochastic depth, from 0 in the first to ``rate`` in the last, as timm does.

    Returns:
        the new modules, in evaluation mode: nothing is dropped until they are in training mode.
    """
    blocks, made = list(model.vit.blocks), []
    for number, block in enumerate(blocks):
        share = rate * number / max(1, len(blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(share).eval() if share else nn.Identity())
            if share:
                made.append(getattr(block, name))
    return made
