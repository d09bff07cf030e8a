"""How fast which parameters learn."""

import pytest
import torch
from torch import nn

from tocom_core.optimisation import learning_rate, parameter_groups, scaled_lr


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    """Linear to the peak, then half a cosine."""
    rates = [learning_rate(step, 100, 2.0, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, 1, 2.0, 0) == 2.0


def test_only_matrices_decay() -> None:
    """Biases, norms and what the module exempts are not decayed; frozen ones are left out."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 3), nn.LayerNorm(3)
            self.token = nn.Parameter(torch.zeros(1, 1, 3))
            self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

        def no_weight_decay(self) -> set[str]:
            return {"token"}

    module = Module()
    decayed, plain = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [id(p) for p in decayed["params"]] == [id(module.linear.weight)]
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 4


def test_learning_rates_scale_with_large_batches_only() -> None:
    """``lr × batch / 512`` from 256 images on."""
    assert scaled_lr(1e-3, 255) == 1e-3
    assert scaled_lr(1e-3, 256) == 5e-4
    assert scaled_lr(1e-3, 1024) == 2e-3
