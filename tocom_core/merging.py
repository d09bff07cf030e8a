"""Bipartite soft matching: which tokens merge, and how (Token Merging, ICLR 2023, section 3).

Pure tensor functions without parameters.  One call finds the pairs, the returned ``Matching``
merges any tensor with one row per token, and can undo it by copying.

The whole result is held as one index map, ``destination[b, n]``: the position after merging of the
token that stood at ``n``.  Merging is then a single ``index_add`` and unmerging a single
``gather``; on a CPU this took a third of the time of gathering, scattering and concatenating the
three groups separately.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tocom_core.schedule import removable


@dataclass(frozen=True)
class Matching:
    """Which token goes where.

    Attributes:
        destination: ``(B, N)`` int64, position after merging of each token before it; ``None``
            if nothing merges.
        removed: how many tokens the sequence loses.
    """

    destination: Tensor | None
    removed: int

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
            size = torch.ones((*x.shape[:2], 1), dtype=exact, device=x.device)
        size = size.to(exact)
        if self.destination is None:
            return x, size
        merged_size = self._sum(size)
        return (self._sum(x * size) / merged_size).to(x.dtype), merged_size

    def unmerge(self, x: Tensor) -> Tensor:
        """Give every original token the value of the token that it was merged into.

        Args:
            x: ``(B, N - removed, D)``.

        Returns:
            ``(B, N, D)``.
        """
        if self.destination is None:
            return x
        return x.gather(1, self.destination.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def _sum(self, x: Tensor) -> Tensor:
        """Add up rows with the same destination: ``(B, N, D)`` to ``(B, N - removed, D)``."""
        assert self.destination is not None  # the callers have asked
        batch, tokens, dim = x.shape
        kept = tokens - self.removed
        first = torch.arange(batch, device=x.device).unsqueeze(1) * kept
        rows = (self.destination + first).view(-1)
        total = x.new_zeros(batch * kept, dim)
        return total.index_add_(0, rows, x.reshape(-1, dim)).view(batch, kept, dim)


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
        return Matching(destination=None, removed=0)
    # Half precision rounds near-equal similarities to ties, so measure in float32 at least.
    metric = functional.normalize(
        metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1
    )
    first_a = num_prefix_tokens + num_prefix_tokens % 2
    first_b = num_prefix_tokens + 1 - num_prefix_tokens % 2
    similarity = metric[:, first_a::2] @ metric[:, first_b::2].transpose(1, 2)
    strength, partner = similarity.max(dim=-1)  # the first of equal ones: the lower index

    num_a, num_b = similarity.shape[1:]
    strongest = strength.sort(dim=-1, descending=True, stable=True).indices[:, :r]
    kept = torch.ones_like(strength, dtype=torch.bool).scatter_(1, strongest, False)
    start_b = num_prefix_tokens + num_a - r
    place = torch.arange(tokens, device=metric.device)
    destination = place.repeat(batch, 1)  # right for the prefix; both sets are filled in here
    destination[:, first_a::2] = torch.where(
        kept, kept.cumsum(dim=1) + (num_prefix_tokens - 1), partner + start_b
    )
    destination[:, first_b::2] = place[:num_b] + start_b
    return Matching(destination=destination, removed=r)
