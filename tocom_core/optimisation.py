"""How fast which parameters learn: the rules of the DeiT recipe."""

import math
from typing import Any

from torch import nn

DEIT_BATCH = 512
"""The batch size that DeiT's learning rates are stated for (ICML 2021, section 6)."""
SMALLEST_SCALED_BATCH = 256
"""Below it the linear rule gives rates at which a bank hardly learns."""


def scaled_lr(lr: float, batch_size: int) -> float:
    """``lr × batch / 512``, from a batch of 256 images on; below that ``lr`` itself."""
    return lr * batch_size / DEIT_BATCH if batch_size >= SMALLEST_SCALED_BATCH else lr


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave biases, norms, tokens and position embeddings alone, as timm does."""
    exempt_names: set[str] = getattr(module, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim <= 1 or name in exempt_names
            (plain if exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
