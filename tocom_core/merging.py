"""Bipartite soft matching: which tokens merge, and how (Token Merging, ICLR 2023, section 3).

Pure tensor functions without parameters.  One call finds the pairs, the returned ``Matching``
merges any tensor with one row per token, and can undo it by copying.

For one image these tensors are so small that what counts is the number of operations, not their
size.  So only set A is looked up: prefix and set B are laid out as they will stand, and every
A-token, whether it merges or stays, is added onto its row by one single ``index_add``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tocom_core.schedule import removable

SHORTEST = 1e-12
"""A metric of less length than this is similar to nothing."""


@dataclass(frozen=True)
class Matching:
    """Which token goes where.

    Attributes:
        rows: int64, one value per token of set A, image after image: its row in the merged batch
            seen as ``(B * (N - removed), D)``; ``None`` if nothing merges.
        removed: how many tokens the sequence loses.
        num_prefix_tokens: how many tokens at the front are in neither set.
    """

    rows: Tensor | None
    removed: int
    num_prefix_tokens: int

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Average the tokens that share a destination, weighted by their size.

        Args:
            x: ``(B, N, D)`` tokens.
            size: ``(B, N, 1)`` number of patches that each token stands for; ``None`` means 1.

        Returns:
            ``(B, N - removed, D)`` tokens in ``x``'s dtype, and their sizes
            ``(B, N - removed, 1)`` in float32 (float64 for float64 tokens).  Sums are taken in
            that dtype too, so that half precision loses nothing in large merged tokens.
        """
        exact = torch.promote_types(x.dtype, torch.float32)
        if size is None:
            weighted = x.to(exact)
            size = weighted.new_ones(*x.shape[:2], 1)
        else:
            size = size.to(exact)
            weighted = x if self.rows is None else x * size
        if self.rows is None:
            return x, size
        merged_size = self._sum(size, self.rows)
        return self._sum(weighted, self.rows).div_(merged_size).to(x.dtype), merged_size

    def unmerge(self, x: Tensor) -> Tensor:
        """Give every original token the value of the token that it was merged into.

        Args:
            x: ``(B, N - removed, D)``.

        Returns:
            ``(B, N, D)``.
        """
        if self.rows is None:
            return x
        batch, kept, dim = x.shape
        whole = x.new_empty(batch, kept + self.removed, dim)
        prefix, set_a, set_b = _split(whole, self.num_prefix_tokens)
        prefix.copy_(x[:, : self.num_prefix_tokens])
        set_a.copy_(x.reshape(-1, dim).index_select(0, self.rows).view(batch, -1, dim))
        set_b.copy_(x[:, kept - set_b.shape[1] :])
        return whole

    def _sum(self, x: Tensor, rows: Tensor) -> Tensor:
        """Add up tokens with the same destination: ``(B, N, D)`` to ``(B, N - removed, D)``."""
        prefix, set_a, set_b = _split(x, self.num_prefix_tokens)
        batch, num_a, dim = set_a.shape
        room = x.new_zeros(batch, num_a - self.removed, dim)
        total = torch.cat([prefix, room, set_b], dim=1)
        total.view(-1, dim).index_add_(0, rows, set_a.reshape(-1, dim))
        return total


def bipartite_soft_matching(metric: Tensor, r: int, num_prefix_tokens: int = 1) -> Matching:
    """Pair up to ``r`` patch tokens with their most similar counterparts.

    Positions count from 0 over the whole sequence, prefix included: even ones form set A, odd ones
    set B.  Each A-token points at its most similar B-token; the ``r`` strongest edges merge, ties
    go to the lower index.  Prefix tokens are in neither set.  Afterwards the order is: prefix,
    remaining A patches, B patches, each in its own order.

    Args:
        metric: ``(B, N, C)`` what similarity is measured on; need not be normalised.
        r: how many tokens to remove; cut to half of the patch tokens.
        num_prefix_tokens: how many tokens at the front never merge.

    Source: Token Merging, section 3 and appendix D; DESIGN section 2.
    """
    batch, tokens, _ = metric.shape
    r = removable(tokens - num_prefix_tokens, r)
    if r == 0:
        return Matching(None, 0, num_prefix_tokens)
    # Half precision rounds near-equal similarities to ties, so measure in float32 at least.
    metric = metric.to(torch.promote_types(metric.dtype, torch.float32))
    length = torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp_min_(SHORTEST)
    _, set_a, set_b = _split(metric / length, num_prefix_tokens)
    # Of equal partners, ``max`` names the first: the lower index.
    strength, partner = torch.bmm(set_a, set_b.transpose(1, 2)).max(dim=-1)

    left_a, left = set_a.shape[1] - r, tokens - r
    staying = strength.argsort(dim=-1, descending=True, stable=True)[:, r:].sort(dim=-1).values
    # Places are counted from the first B-token: those that stay come in order just before it.
    seats = torch.arange(-left_a, 0, device=metric.device)
    place = partner.scatter_(1, staying, seats.expand_as(staying))
    first_b = torch.arange(num_prefix_tokens + left_a, batch * left, left, device=metric.device)
    place += first_b.unsqueeze(1)
    return Matching(place.view(-1), r, num_prefix_tokens)


def _split(x: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a sequence ``(B, N, D)``: prefix, set A (even positions), set B (odd positions)."""
    odd = num_prefix_tokens % 2
    patches = x[:, num_prefix_tokens:]
    return x[:, :num_prefix_tokens], patches[:, odd::2], patches[:, 1 - odd :: 2]
