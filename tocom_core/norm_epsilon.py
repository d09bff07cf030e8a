"""The epsilon of a model's layer norms, where it is another than its architecture's own.

timm's ViTs take 1e-6 and have no argument that a file could record; `transformers` takes 1e-12, and
where activations are small the two give different logits.
"""

from torch import nn


def norm_eps(model: nn.Module) -> float | None:
    """The one epsilon of all layer norms; ``None`` if they differ, or there are none."""
    found = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    return found.pop() if len(found) == 1 else None


def set_norm_eps(model: nn.Module, epsilon: float) -> None:
    """Give all layer norms this epsilon."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon
