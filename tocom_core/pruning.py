"""Token pruning by class-token attention (EViT, ICLR 2022, section 3.1), per block.

The cheaper-to-explain cousin of merging: tokens that the class token hardly looks at are dropped.
"""

import torch
from torch import Tensor

from tocom_core.schedule import removable


def class_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """How much the class token attends to every token, averaged over heads.

    Only the class token's row of the attention matrix is computed.

    Args:
        query: ``(B, H, N, d)``, the class token first.
        key: ``(B, H, N, d)``.
        scale: the softmax scale, ``1/√d``.

    Returns:
        ``(B, N)`` float32, rows sum to 1.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    logits = (query[:, :, :1].to(exact) * scale) @ key.to(exact).transpose(-2, -1)
    return logits.softmax(dim=-1).mean(dim=1).squeeze(1)


def prune_tokens(x: Tensor, attention: Tensor, r: int, num_prefix_tokens: int) -> Tensor:
    """Drop the ``r`` patch tokens with the least attention; the others keep their order.

    At least one patch token stays.  Of equal ones the lower index goes first.

    Args:
        x: ``(B, N, D)`` tokens.
        attention: ``(B, N)`` from ``class_attention``.
        r: how many patch tokens to drop.
        num_prefix_tokens: how many tokens at the front always stay.

    Returns:
        ``(B, N - r, D)``.
    """
    batch, tokens, dim = x.shape
    r = removable(tokens - num_prefix_tokens, r, "prune")
    if r == 0:
        return x
    # By numbers, not by a mask: how many a mask keeps is known only once it is computed, and a CUDA
    # graph cannot wait for that.
    strongest = attention[:, num_prefix_tokens:].argsort(dim=-1, stable=True)[:, r:]
    kept = torch.arange(tokens - r, device=x.device).repeat(batch, 1)
    kept[:, num_prefix_tokens:] = strongest.sort(dim=-1).values + num_prefix_tokens
    kept += torch.arange(0, batch * tokens, tokens, device=x.device).unsqueeze(1)
    return x.reshape(-1, dim).index_select(0, kept.view(-1)).view(batch, tokens - r, dim)
