"""A compressed ViT whose layers are compiled by ``torch.compile``, the matching between them not.

The whole forward pass would have to be compiled for each degree, and each such compilation takes a
minute or more. Attention and MLP do not know the degree: compiled for any number of tokens, one
block after the other, they serve all degrees and batch sizes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor

from tocom_core.attention import Attended, proportional_attention
from tocom_core.attention_ways import AskedWay
from tocom_core.compressed_vit import CompressedViT
from tocom_core.schedule import resolve_schedule

_MOST_COMPILATIONS = 64
"""One for each kind of block, one image or several, with sizes or without, number of threads."""


class CompiledViT:
    """Runs a `CompressedViT`, on its own live weights.

    What comes in a new kind (one image or several, with sizes or without, another number of
    threads) is compiled when it first comes, which takes seconds.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: CompressedViT) -> None:
        import torch._dynamo as dynamo  # takes a second

        config: Any = dynamo.config
        config.recompile_limit = max(config.recompile_limit, _MOST_COMPILATIONS)
        self._model = model
        self._attend: Callable[..., tuple[Tensor, Tensor, Tensor]]
        self._attend = torch.compile(_attend, dynamic=True)
        self._mlp: Callable[..., Tensor] = torch.compile(_mlp, dynamic=True)

    def __call__(self, images: Tensor, r: int | Sequence[int] = 0) -> Tensor:
        """Classify; see `CompressedViT.forward`."""
        model, vit = self._model, self._model.vit
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        size: Tensor | None = None
        for block, removed in zip(vit.blocks, resolve_schedule(r, model.depth), strict=True):
            weigh = size if model.prop_attn else None
            attended = Attended(*self._attend(block, x, weigh, model.attention))
            x, size = model._remove(attended, block.attn.scale, attended.out, size, removed)
            x = self._mlp(block, x)
        return model.forward_head(vit.norm(x), size)


def _attend(
    block: Any, x: Tensor, size: Tensor | None, way: AskedWay
) -> tuple[Tensor, Tensor, Tensor]:
    """A block's attention and residual; queries and keys for whoever removes tokens."""
    if isinstance(block, ResPostBlock):
        attended = proportional_attention(block.attn, x, size, way)
        return x + block.norm1(attended.out), attended.query, attended.key
    attended = proportional_attention(block.attn, block.norm1(x), size, way)
    return x + block.ls1(attended.out), attended.query, attended.key


def _mlp(block: Any, x: Tensor) -> Tensor:
    """A block's MLP and residual."""
    update: Tensor
    if isinstance(block, ResPostBlock):
        update = block.norm2(block.mlp(x))
    else:
        update = block.ls2(block.mlp(block.norm2(x)))
    return x + update
