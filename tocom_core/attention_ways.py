"""Several ways to the same proportional attention, and which one is taken where.

All compute ``softmax(QKᵀ/√d + log s) V`` (Token Merging, section 3, equation 1):

- ``bias``: PyTorch's fused attention with ``log s`` as an additive mask.  The mask is broadcast
  over heads and queries, ``(B, 1, 1, N)``: no ``(N, N)`` is held, and nothing is copied.
- ``channels``: fused attention without a mask, for kernels that know none (flash attention):
  queries get channels of 1, keys get ``√d · log s`` there.  One channel would round it to the
  keys' precision, so that it is split into a high part and the rest, see ``SPLIT_ERROR``.
- ``products``: two matrix products with a softmax between them.
- ``flex``: FlexAttention with a score modifier, compiled; on a CUDA device only.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Way = Literal["bias", "channels", "products", "flex"]
AskedWay = Literal["auto", "bias", "channels", "products", "flex"]
WAYS: tuple[Way, ...] = get_args(Way)

SPLIT_ERROR = {torch.bfloat16: 2.0**-16, torch.float16: 2.0**-22}
"""Largest error of ``log s`` through two channels, relative to it; one alone: its square root.

For a size of 196 that is 8e-5 in bfloat16 and 1.3e-6 in float16 (and 2^-24/√d more, below which
float16 has no numbers); a mask in the same types is off by up to 2e-2 and 2.6e-3.
"""
CHANNEL_STEP = 8
"""Flash attention wants heads whose width is a multiple of this."""
WIDEST_FLASH_HEAD = 256
NARROWEST_FLEX_HEAD = 16


def choose_way(
    device_type: str, dtype: torch.dtype, head_dim: int, asked: AskedWay = "auto"
) -> Way:
    """Which way is taken.

    Unless another one is asked for it is ``bias``.  On a CPU that was the fastest in float32 or
    close to it; ``products`` are up to twice as fast there in half precision, but round every score
    to it: three times the error.  On a GPU nothing was measured; ``bias`` is the only fused way
    that neither copies queries, keys and values nor compiles.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, …
        dtype: of queries, keys and values.
        head_dim: width of a head.
        asked: taken where it can run; elsewhere as for ``"auto"``.
    """
    on_gpu = device_type == "cuda"
    if asked == "channels":
        # Wider than that, flash attention refuses, and there is nothing to be won.
        too_wide = on_gpu and padded_head(head_dim) > WIDEST_FLASH_HEAD
        return "bias" if too_wide else "channels"
    if asked == "flex":
        fits = on_gpu and dtype != torch.float64 and head_dim >= NARROWEST_FLEX_HEAD
        return "flex" if fits else "bias"
    return "bias" if asked == "auto" else asked


def padded_head(head_dim: int) -> int:
    """Width of a head with two more channels, as ``channels`` makes it."""
    return -(-(head_dim + 2) // CHANNEL_STEP) * CHANNEL_STEP


def weighted_attention(
    way: Way, query: Tensor, key: Tensor, value: Tensor, size: Tensor, dropout_p: float = 0.0
) -> Tensor:
    """Attention in which a key of size ``s`` counts ``s`` times.

    Args:
        way: how; all give the same up to rounding.
        query: ``(B, H, N, d)``, like ``key`` and ``value``.
        key: see there.
        value: see there.
        size: ``(B, N, 1)`` float32 or float64, each at least 1.
        dropout_p: of the attention weights; only ``bias`` knows it.

    Returns:
        ``(B, H, N, d)`` in ``query``'s dtype.
    """
    if way == "channels":
        return _with_channels(query, key, value, size)
    if way == "products":
        return _with_products(query, key, value, size)
    if way == "flex":
        return flex(query, key, value, size, _compiled_flex())
    bias = log_size_bias(size, query.dtype)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout_p
    )


def log_size_bias(size: Tensor, dtype: torch.dtype) -> Tensor:
    """``log s`` as an additive attention mask: ``(B, N, 1)`` to ``(B, 1, 1, N)`` in ``dtype``."""
    return size.log().to(dtype).transpose(1, 2).unsqueeze(1)


def split_log_size(size: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``√d · log s`` as a high part and what that leaves out: twice ``(B, N, 1)`` in ``dtype``."""
    exact = size.log() * math.sqrt(head_dim)
    high = exact.to(dtype)
    return high, (exact - high).to(dtype)


def flex(
    query: Tensor, key: Tensor, value: Tensor, size: Tensor, run: Callable[..., Any]
) -> Tensor:
    """The way ``flex`` with a FlexAttention of one's own choice: compiled, or not, for tests."""
    log_size = size.log().squeeze(-1).contiguous()

    def weigh(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + log_size[image, key]

    out: Tensor = run(query, key, value, score_mod=weigh)
    return out


def _with_channels(query: Tensor, key: Tensor, value: Tensor, size: Tensor) -> Tensor:
    head_dim = query.shape[-1]
    more = (0, padded_head(head_dim) - head_dim)
    query, key, value = (functional.pad(tensor, more) for tensor in (query, key, value))
    query[..., head_dim : head_dim + 2] = 1
    for place, part in enumerate(split_log_size(size, head_dim, key.dtype), start=head_dim):
        key[..., place] = part.transpose(1, 2)
    out = functional.scaled_dot_product_attention(query, key, value, scale=head_dim**-0.5)
    return out[..., :head_dim]


def _with_products(query: Tensor, key: Tensor, value: Tensor, size: Tensor) -> Tensor:
    batch, heads, tokens, head_dim = query.shape
    bias = log_size_bias(size, query.dtype).expand(batch, heads, 1, tokens).flatten(0, 1)
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=head_dim**-0.5)
    return torch.bmm(scores.softmax(dim=-1), value).view(batch, heads, tokens, head_dim)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention as one kernel for all numbers of tokens; compiled at its first call."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
