"""Self-attention in which a token that stands for several patches counts several times.

Proportional attention (Token Merging, section 3, equation 1) is ``softmax(QKᵀ/√d + log s) V``
with ``s`` the number of patches behind each key.  How that is computed best depends on the device:
`attention_ways` knows several ways, all without an ``(N, N)`` bias.
"""

from typing import NamedTuple

import torch
from timm.layers.attention import Attention
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend

from tocom_core.attention_ways import AskedWay, choose_way, weighted_attention

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


def proportional_attention(
    attn: Attention, x: Tensor, size: Tensor | None = None, way: AskedWay = "auto"
) -> Attended:
    """Run a timm attention layer with its own parameters, weighting keys by their size.

    Args:
        attn: timm's ``Attention``; q/k-norm, output norm, gate, biases and dropouts are honoured.
        x: ``(B, N, D)`` normalised tokens.
        size: ``(B, N, 1)`` patches behind each token; ``None`` is plain attention.
        way: how sizes are brought in, see `attention_ways.choose_way`.  With gradients it is always
            as a bias, whose backward pass PyTorch has fused.

    Returns:
        The output and the normed queries and keys, which matching and pruning need.
    """
    batch, tokens, _ = x.shape
    qkv = attn.qkv(x).view(batch, tokens, 3, attn.num_heads, attn.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attn.q_norm(query), attn.k_norm(key)
    dropout_p = attn.attn_drop.p if attn.training else 0.0
    if size is None:
        out = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    else:
        learning = torch.is_grad_enabled() and query.requires_grad
        chosen = choose_way(query.device.type, query.dtype, attn.head_dim, way)
        chosen = "bias" if learning or dropout_p else chosen
        out = weighted_attention(chosen, query, key, value, size, dropout_p)
    out = attn.norm(out.transpose(1, 2).reshape(batch, tokens, -1))
    gate = getattr(attn, "gate", None)  # younger than the oldest timm that is supported
    if gate is not None:
        out = out * gate(x).sigmoid()
    return Attended(attn.proj_drop(attn.proj(out)), query, key)
