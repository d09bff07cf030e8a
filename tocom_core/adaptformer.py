"""AdaptFormer: tune a frozen ViT through a small bottleneck beside each MLP.

Fine-tuning all weights gives one large file per task and moves the backbone away from what a bank
was trained on.  AdaptFormer (NeurIPS 2022, section 3.2) leaves the backbone as it is and learns two
thin matrices per block, in parallel to the MLP:

    x' = x + MLP(LN(x)) + s · ReLU(LN(x) W_down) W_up

The adapter stands inside the block's ``mlp``, so whatever runs the block one module after the
other, as ``CompressedViT`` does, runs the adapter too, on the tokens that are left after merging.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tocom_core.errors import UnsupportedModelError

# How this module, and the research code, name an adapter's weights in a state dict.
_WEIGHT_NAMES = (".mlp.adapter.", ".adaptmlp.")


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's weights do not say about it.

    Attributes:
        bottleneck: width of the hidden layer.
        scale: ``s``, the factor on the adapter's output.

    Raises:
        ValueError: no such adapter exists.
    """

    bottleneck: int = 32
    scale: float = 0.1

    def __post_init__(self) -> None:
        if type(self.bottleneck) is not int or self.bottleneck < 1:
            raise ValueError(f"bottleneck={self.bottleneck!r} must be an int of 1 or more")
        if type(self.scale) not in (int, float) or not math.isfinite(self.scale) or self.scale <= 0:
            raise ValueError(f"scale={self.scale!r} must be a finite number above 0")


class Adapter(nn.Module):
    """``s · ReLU(x W_down + b_down) W_up + s · b_up``: ``(…, D)`` to ``(…, D)``.

    ``W_down`` starts Kaiming-uniform, everything else at zero: a fresh adapter gives zeros, and
    learns because the gradient of ``W_up`` is not zero.
    """

    def __init__(self, dim: int, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.down = nn.Linear(dim, config.bottleneck)
        self.up = nn.Linear(config.bottleneck, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``."""
        out: Tensor = self.config.scale * self.up(self.down(x).relu())
        return out


class AdaptedMlp(nn.Module):
    """A block's MLP with an adapter in parallel.

    Layer scale (``ls2``) moves in here as well: it belongs to the frozen MLP's path.  Left around
    the sum it would shrink the adapter's output by a factor of down to 1e-5, against the formula.

    Args:
        mlp: the block's own, of any kind.
        layer_scale: the block's ``ls2``.
        adapter: what learns.
    """

    def __init__(self, mlp: nn.Module, layer_scale: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.mlp = mlp
        self.layer_scale = layer_scale
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` normalised tokens to what the block adds to its residual."""
        out: Tensor = self.layer_scale(self.mlp(x)) + self.adapter(x)
        return out


def add_adapters(vit: VisionTransformer, bottleneck: int = 32, scale: float = 0.1) -> list[Adapter]:
    """Give every block of ``vit`` an adapter, in place; its outputs stay what they were.

    Draws the down-projections from torch's global generator.

    Returns:
        the adapters, first block first.

    Raises:
        UnsupportedModelError: the model has adapters already, or a block that the formula does not
            describe; nothing is changed then.
        ValueError: ``bottleneck`` or ``scale`` is out of range.
    """
    config = AdapterConfig(bottleneck, scale)
    for number, block in enumerate(vit.blocks):
        reason = _unsupported_block(block)
        if reason is not None:
            raise UnsupportedModelError(f"block {number} {reason}")
    return [_adapt(block, int(vit.embed_dim), config) for block in vit.blocks]


def adapters_of(vit: nn.Module) -> list[Adapter]:
    """The adapters of a model, first block first; empty if it has none."""
    return [module for module in vit.modules() if isinstance(module, Adapter)]


def adapter_config(vit: nn.Module) -> AdapterConfig | None:
    """How the model is adapted; ``None`` if it is not."""
    return next((adapter.config for adapter in adapters_of(vit)), None)


def adapter_key(state: Mapping[str, Any]) -> str | None:
    """The first key of a state dict that names an adapter's weight; ``None`` if none does."""
    return next((key for key in state if any(part in key for part in _WEIGHT_NAMES)), None)


def _adapt(block: Block, dim: int, config: AdapterConfig) -> Adapter:
    like = next(block.parameters())
    adapter = Adapter(dim, config).to(like.device, like.dtype)
    block.mlp = AdaptedMlp(block.mlp, block.ls2, adapter)
    block.mlp.train(block.training)
    block.ls2 = nn.Identity()
    return adapter


def _unsupported_block(block: nn.Module) -> str | None:
    """Why a block cannot take an adapter; ``None`` if it can."""
    if isinstance(block, ResPostBlock):
        return (
            "is a ResPostBlock, which normalises after its MLP; AdaptFormer's formula adds to an "
            "MLP that reads normalised tokens: tune this model in full"
        )
    if type(block) is not Block:
        return f"is a {type(block).__name__}; only timm's plain Block takes an adapter"
    if isinstance(block.mlp, AdaptedMlp):
        config = block.mlp.adapter.config
        return (
            f"has an adapter already (bottleneck {config.bottleneck}, scale {config.scale}); start "
            "from the backbone without adapters, or tune this model in full"
        )
    return None
