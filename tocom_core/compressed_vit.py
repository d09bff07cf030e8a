"""A timm Vision Transformer whose forward pass takes ``r``.

``CompressedViT`` wraps the model it is given and uses that model's own modules and parameters, one
block after the other; between attention and MLP it merges (or prunes) tokens.  Nothing is copied,
renamed or patched: ``vit(x)`` goes on being plain timm, and at ``r=0`` it is what runs.

What the method does not cover is refused when the model is wrapped, not when a request arrives.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tocom_core.attention import Attended, proportional_attention
from tocom_core.attention_ways import AskedWay, log_size_bias
from tocom_core.errors import UnsupportedModelError
from tocom_core.merging import Matching
from tocom_core.pruning import class_attention, prune_tokens
from tocom_core.schedule import Method, ViTShape, resolve_schedule
from tocom_core.token_matching import match_keys


class CompressedViT(nn.Module):
    """A ViT that removes ``r`` tokens per block.

    Args:
        vit: a timm ``VisionTransformer`` (class token or none, distillation token, registers,
            average, max or attention pooling, q/k-norm, layer scale, ``ResPostBlock``, any image
            size).  Its parameters are the live ones.
        method: ``"merge"`` (Token Merging) or ``"prune"`` (EViT, needs a class token).
        prop_attn: weight keys by the number of patches they stand for (merging only).

    Attributes:
        attention: how sizes are brought into attention (`attention_ways`); may be changed any time.

    Raises:
        UnsupportedModelError: the method does not cover this model; the message names the reason.
    """

    def __init__(
        self, vit: VisionTransformer, method: Method = "merge", prop_attn: bool = True
    ) -> None:
        super().__init__()
        reason = unsupported_reason(vit, method)
        if reason is not None:
            raise UnsupportedModelError(f"{type(vit).__name__}: {reason}")
        self.vit = vit
        self.method: Method = method
        self.prop_attn = prop_attn
        self.attention: AskedWay = "auto"

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    @property
    def embed_dim(self) -> int:
        """Token width ``D``."""
        return int(self.vit.embed_dim)

    @property
    def num_patches(self) -> int:
        """Patch tokens of one image at the model's own input size."""
        return int(self.vit.patch_embed.num_patches)

    @property
    def max_r(self) -> int:
        """The largest degree that changes anything: more is cut in every block."""
        return self.num_patches // 2 if self.method == "merge" else self.num_patches - 1

    @cached_property
    def shape(self) -> ViTShape:
        """The sizes that ``schedule.count_macs`` needs; the stem is counted by running it once."""
        return ViTShape(
            num_patches=self.num_patches,
            num_prefix_tokens=int(self.vit.num_prefix_tokens),
            embed_dim=self.embed_dim,
            depth=self.depth,
            mlp_macs_per_token=_mlp_macs_per_token(self.vit.blocks[0].mlp),
            stem_macs=_stem_macs(self.vit),
        )

    def forward(self, images: Tensor, r: int | Sequence[int] = 0) -> Tensor:
        """Classify.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            r: tokens to remove per block; one int, or one value per block.

        Returns:
            ``(B, num_classes)`` logits (features for a model without a head).

        Raises:
            ScheduleError: ``r`` is no valid schedule for this model.
        """
        if not any(resolve_schedule(r, self.depth)):
            return self.vit(images)  # type: ignore[no-any-return]
        return self.forward_head(*self.forward_features(images, r))

    def forward_features(
        self, images: Tensor, r: int | Sequence[int] = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Run stem, blocks and final norm.

        Returns:
            ``(B, N', D)`` tokens and their sizes ``(B, N', 1)``; ``None`` if nothing was merged.
        """
        schedule = resolve_schedule(r, self.depth)
        x = self._stem(images)
        size: Tensor | None = None
        for block, removed in zip(self.vit.blocks, schedule, strict=True):
            x, size = self._block(block, x, size, removed)
        return self.vit.norm(x), size

    def forward_head(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """Pool with regard to token sizes and classify: ``(B, N', D)`` to ``(B, num_classes)``."""
        if size is None or self.vit.global_pool in ("token", ""):
            return self.vit.forward_head(x)  # type: ignore[no-any-return]
        pooled = self._pool(x, size)
        return self.vit.head(self.vit.head_drop(self.vit.fc_norm(pooled)))  # type: ignore[no-any-return]

    def _stem(self, images: Tensor) -> Tensor:
        """Images to the tokens of the first block, ``(B, N, D)``."""
        return self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))  # type: ignore[no-any-return]

    def _block(
        self, block: Any, x: Tensor, size: Tensor | None, removed: int
    ) -> tuple[Tensor, Tensor | None]:
        """One transformer block; tokens are removed between its attention and its MLP."""
        x, size = self._attend(block, x, size, removed)
        if isinstance(block, ResPostBlock):
            return x + block.drop_path2(block.norm2(block.mlp(x))), size
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), size

    def _attend(
        self, block: Any, x: Tensor, size: Tensor | None, removed: int
    ) -> tuple[Tensor, Tensor | None]:
        """A block's attention and residual, then the removal of ``removed`` tokens.

        Queries and keys are let go on return: kept until the MLP is done, they crowd the CPU's
        cache, and ViT-Tiny takes 12 % longer at batch 8.
        """
        weigh = size if self.prop_attn else None
        if isinstance(block, ResPostBlock):
            attended = proportional_attention(block.attn, x, weigh, self.attention)
            x = x + block.drop_path1(block.norm1(attended.out))
        else:
            attended = proportional_attention(block.attn, block.norm1(x), weigh, self.attention)
            x = x + block.drop_path1(block.ls1(attended.out))
        return self._remove(attended, block.attn.scale, x, size, removed)

    def _remove(
        self, attended: Attended, scale: float, x: Tensor, size: Tensor | None, removed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Merge or prune ``removed`` tokens of ``x``: ``(B, N, D)``."""
        if removed == 0:
            return x, size
        prefix = int(self.vit.num_prefix_tokens)
        if self.method == "prune":
            attention = class_attention(attended.query, attended.key, scale)
            return prune_tokens(x, attention, removed, prefix), None
        return self._match(attended.key, removed).merge(x, size)

    def _match(self, key: Tensor, removed: int) -> Matching:
        """Pair tokens by their keys ``(B, H, N, d)``."""
        # The choice of pairs is discrete, and must be the same in training (autocast) and serving.
        with torch.no_grad(), torch.autocast(key.device.type, enabled=False):
            return match_keys(key, removed, int(self.vit.num_prefix_tokens))

    def _pool(self, x: Tensor, size: Tensor) -> Tensor:
        """Pool as timm's ``pool()`` does, with token sizes: ``(B, N', D)`` to ``(B, D)``."""
        vit = self.vit
        if not vit.pool_include_prefix:
            x, size = x[:, vit.num_prefix_tokens :], size[:, vit.num_prefix_tokens :]
        if vit.attn_pool is not None:
            bias = log_size_bias(size, x.dtype) if self.prop_attn else None
            return vit.attn_pool(x, attn_mask=bias)  # type: ignore[no-any-return]
        if vit.global_pool == "max":
            return x.amax(dim=1)
        mean = ((x * size).sum(dim=1) / size.sum(dim=1)).to(x.dtype)
        return 0.5 * (x.amax(dim=1) + mean) if vit.global_pool == "avgmax" else mean


def unsupported_reason(vit: nn.Module, method: Method = "merge") -> str | None:
    """Why the method cannot be applied to ``vit``; ``None`` if it can."""
    if method not in ("merge", "prune"):
        return f"method={method!r} is not known; use 'merge' or 'prune'"
    if not isinstance(vit, VisionTransformer):
        return "only timm's VisionTransformer and its subclasses are supported"
    if not isinstance(vit.patch_drop, nn.Identity):
        return "it drops patches at random (patch_drop_rate > 0); build it with patch_drop_rate=0"
    for number, block in enumerate(vit.blocks):
        reason = _unsupported_block(block)
        if reason is not None:
            return f"block {number} {reason}"
    pool = vit.attn_pool
    if pool is not None and not isinstance(pool, AttentionPoolLatent):
        return f"its pooling {type(pool).__name__} takes no token sizes"
    if pool is not None and pool.pos_embed is not None:
        return "its attention pooling has position embeddings, which merged tokens do not have"
    if method == "prune" and not vit.has_class_token:
        return "pruning ranks tokens by the class token's attention, but it has no class token"
    return None


def _unsupported_block(block: nn.Module) -> str | None:
    """Why a block cannot be taken apart between attention and MLP; ``None`` if it can."""
    if type(block) not in (Block, ResPostBlock):
        return (
            f"is a {type(block).__name__}; only Block and ResPostBlock, which run attention and "
            "MLP one after the other, are supported"
        )
    if type(block.attn) is not Attention:
        return f"uses {type(block.attn).__name__}; only timm's plain Attention is supported"
    return None


def _mlp_macs_per_token(mlp: nn.Module) -> int:
    """Multiply-adds per token of an MLP: the sizes of all its matrices."""
    return sum(m.weight.numel() for m in mlp.modules() if isinstance(m, nn.Linear))


def _stem_macs(vit: VisionTransformer) -> int:
    """Multiply-adds of the patch embedding and the head, counted by PyTorch on one image."""
    weight = next(vit.parameters())
    height, width = vit.patch_embed.img_size
    image = torch.zeros(1, vit.in_chans, height, width, dtype=weight.dtype, device=weight.device)
    training = vit.training
    vit.eval()
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            vit.patch_embed(image)
    finally:
        vit.train(training)
    head = sum(p.numel() for p in vit.head.parameters() if p.ndim == 2)
    return int(counter.get_total_flops() // 2 + head)
