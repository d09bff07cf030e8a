"""What one image says about a model: is its class right, is it what the reference would say."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose highest logit is the right class."""
    return float((logits.argmax(dim=-1) == labels).float().mean())


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """``KL(reference ‖ logits)`` of each image's classes: ``(N, C)`` to ``(N,)``, in nats."""
    log_p, log_q = reference.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@dataclass(frozen=True)
class ImageFigures:
    """Figures of ``N`` images, each ``(N,)``: all that is kept of their logits.

    Attributes:
        right: bool; the highest logit is the label (never, where the label is -1).
        in_top5: bool; the label is among the five highest logits.
        agrees: bool; the highest logit is the reference's.
        kl: float32; KL divergence from the reference's distribution, in nats.
    """

    right: Tensor
    in_top5: Tensor
    agrees: Tensor
    kl: Tensor

    def __len__(self) -> int:
        return len(self.kl)

    @classmethod
    def of(cls, logits: Tensor, reference: Tensor, labels: Tensor) -> "ImageFigures":
        """Compare logits ``(N, C)`` with the reference's ``(N, C)`` and the labels ``(N,)``."""
        best = logits.argmax(dim=-1)
        top5 = logits.topk(min(5, logits.shape[1]), dim=-1).indices
        return cls(
            right=best == labels,
            in_top5=(top5 == labels.unsqueeze(1)).any(dim=1),
            agrees=best == reference.argmax(dim=-1),
            kl=kl_divergence(reference, logits),
        )

    @classmethod
    def joined(cls, parts: Sequence["ImageFigures"]) -> "ImageFigures":
        """Those of several batches, one after the other."""
        names = ("right", "in_top5", "agrees", "kl")
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
