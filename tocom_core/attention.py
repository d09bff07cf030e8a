"""Self-attention in which a token that stands for several patches counts several times.

Proportional attention (Token Merging, section 3, equation 1) is ``softmax(QKᵀ/√d + log s) V``
with ``s`` the number of patches behind each key.  The bias goes into PyTorch's fused attention as a
broadcast mask, so that the ``(N, N)`` matrix is never held here.
"""

from typing import NamedTuple

import torch
from timm.layers.attention import Attention
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend

FUSED_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
"""What is fastest without a backward pass, and on a GPU with one."""


def learning_kernels(device_type: str) -> list[SDPBackend]:
    """The kernels to learn with: a CPU's fused backward is slower than plain products."""
    return [SDPBackend.MATH] if device_type == "cpu" else FUSED_KERNELS


class Attended(NamedTuple):
    """What one attention layer computed.

    Attributes:
        out: ``(B, N, D)`` the layer's output, projected.
        query: ``(B, H, N, d)`` after q-norm.
        key: ``(B, H, N, d)`` after k-norm.
    """

    out: Tensor
    query: Tensor
    key: Tensor


def log_size_bias(size: Tensor, dtype: torch.dtype) -> Tensor:
    """``log s`` as an additive attention mask: ``(B, N, 1)`` to ``(B, 1, 1, N)`` in ``dtype``."""
    return size.log().to(dtype).transpose(1, 2).unsqueeze(1)


def key_metric(key: Tensor) -> Tensor:
    """What the similarity of tokens is measured on: the sum of their keys over the heads.

    It points where the mean does, and only the direction counts.

    Args:
        key: ``(B, H, N, d)``.

    Returns:
        ``(B, N, d)``, at least float32.
    """
    exact = torch.promote_types(key.dtype, torch.float32)
    if key.device.type != "cpu":
        return key.sum(dim=1, dtype=exact)
    # The keys lie scattered between queries and values: for a batch of 8 with 3 heads, adding head
    # by head takes a third of the time of one reduction.
    first, *others = key.to(exact).unbind(1)
    total = first.clone()
    for head in others:
        total += head
    return total


def proportional_attention(attn: Attention, x: Tensor, size: Tensor | None = None) -> Attended:
    """Run a timm attention layer with its own parameters, weighting keys by their size.

    Args:
        attn: timm's ``Attention``; q/k-norm, output norm, gate, biases and dropouts are honoured.
        x: ``(B, N, D)`` normalised tokens.
        size: ``(B, N, 1)`` patches behind each token; ``None`` is plain attention.

    Returns:
        The output and the normed queries and keys, which matching and pruning need.
    """
    batch, tokens, _ = x.shape
    qkv = attn.qkv(x).view(batch, tokens, 3, attn.num_heads, attn.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attn.q_norm(query), attn.k_norm(key)
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if size is None else log_size_bias(size, query.dtype),
        dropout_p=attn.attn_drop.p if attn.training else 0.0,
    )
    out = attn.norm(out.transpose(1, 2).reshape(batch, tokens, -1))
    gate = getattr(attn, "gate", None)  # younger than the oldest timm that is supported
    if gate is not None:
        out = out * gate(x).sigmoid()
    return Attended(attn.proj_drop(attn.proj(out)), query, key)
