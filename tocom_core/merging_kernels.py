"""Matching and merging as three Triton kernels, for CUDA devices.

In PyTorch a block's matching and merging is 22 operations, sorts of several kernels among them, and
most do next to nothing but start.  Here it is three kernels:

1. ``_find_partners``: each A-token's most similar B-token, from the keys as they lie.  Heads are
   summed, lengths divided out and similarities compared tile by tile; no ``(B, Na, Nb)`` is held.
2. ``_assign_rows``: who merges, and where everybody will stand.  A token's rank is the number of
   stronger edges, and of equal ones before it, so that nothing is sorted.
3. ``_merge_rows``: each row of the result collects its tokens, in ascending order: no atomics, and
   the same bits every time.

Nothing here waits for the device or reads from it, so that CUDA graphs can record it.  What runs
without Triton, and defines what these must give, is `merging`; `token_matching` chooses.

Source: Token Merging (ICLR 2023), section 3; DESIGN section 2.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tocom_core.merging import SHORTEST, Matching
from tocom_core.schedule import removable

TILE = 32
"""Tokens of either set that are compared at a time."""
WIDEST_ROW = 1024
"""Channels that one program merges at a time."""


@dataclass(frozen=True)
class KernelMatching(Matching):
    """A matching that merges in one kernel; see `Matching`."""

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Matching.merge`; where gradients are wanted it is that, operation by operation."""
        learning = torch.is_grad_enabled() and x.requires_grad
        if self.rows is None or learning or x.dtype == torch.float64:
            return super().merge(x, size)
        return _merge(x, size, self.rows, self.removed, self.num_prefix_tokens)


def match_keys_fused(key: Tensor, r: int, num_prefix_tokens: int = 1) -> Matching:
    """``bipartite_soft_matching`` of the keys' sum over the heads, in two kernels.

    Args:
        key: ``(B, H, N, d)`` float32, bfloat16 or float16, any strides.
        r: how many tokens to remove; cut to half of the patch tokens.
        num_prefix_tokens: how many tokens at the front never merge.

    Returns:
        Similarities are summed in float32; of near-ties, that may decide otherwise than PyTorch's
        own order of summation.  Equal tokens tie exactly, and the lower index wins.
    """
    batch, heads, tokens, dim = key.shape
    patches = tokens - num_prefix_tokens
    r = removable(patches, r)
    if r == 0:
        return KernelMatching(None, 0, num_prefix_tokens)
    odd = num_prefix_tokens % 2
    num_a, num_b = (patches + 1 - odd) // 2, (patches + odd) // 2
    strength = torch.empty(batch, num_a, dtype=torch.float32, device=key.device)
    partner = torch.empty(batch, num_a, dtype=torch.int32, device=key.device)
    rows = torch.empty(batch * num_a, dtype=torch.int64, device=key.device)
    _find_partners[(batch, triton.cdiv(num_a, TILE))](
        key, *key.stride(), strength, partner,
        num_prefix_tokens + odd, num_prefix_tokens + 1 - odd, num_a, num_b,
        SHORTEST, heads, dim, max(16, triton.next_power_of_2(dim)), TILE,
        enable_fp_fusion=True,
    )  # fmt: skip
    _assign_rows[(batch,)](
        strength, partner, rows, num_prefix_tokens, num_a, r, tokens - r,
        max(16, triton.next_power_of_2(num_a)), TILE,
        enable_fp_fusion=True,
    )  # fmt: skip
    return KernelMatching(rows, r, num_prefix_tokens)


def _merge(
    x: Tensor, size: Tensor | None, rows: Tensor, removed: int, num_prefix_tokens: int
) -> tuple[Tensor, Tensor]:
    """Run the third kernel: ``(B, N, D)`` tokens and ``(B, N, 1)`` sizes to the merged ones."""
    batch, tokens, dim = x.shape
    num_a, left = len(rows) // batch, tokens - removed
    size = None if size is None else size.float().contiguous()
    merged = torch.empty(batch, left, dim, dtype=x.dtype, device=x.device)
    merged_size = torch.empty(batch, left, 1, dtype=torch.float32, device=x.device)
    width = min(WIDEST_ROW, triton.next_power_of_2(dim))
    _merge_rows[(batch, left, triton.cdiv(dim, width))](
        x, *x.stride(), merged_size if size is None else size, rows, merged, merged_size,
        num_prefix_tokens, num_prefix_tokens % 2, num_a, num_a - removed, tokens, left, dim,
        size is not None, triton.next_power_of_2(num_a), width,
        enable_fp_fusion=False,  # products are rounded before they are added, as PyTorch does
    )  # fmt: skip
    return merged, merged_size


# A count that happens to be 1 or a multiple of 16 in some block would be compiled once more.


@triton.jit(do_not_specialize=["first_a", "first_b", "num_a", "num_b"])
def _find_partners(
    key, key_image, key_head, key_token, key_channel, strength, partner,
    first_a, first_b, num_a, num_b,
    shortest, HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One image and one tile of set A: go through set B, keep the best so far."""
    image = tl.program_id(0)
    key += image.to(tl.int64) * key_image
    a = tl.program_id(1) * TILE + tl.arange(0, TILE)
    unit_a = _unit_rows(
        key, first_a + 2 * a, a < num_a, key_head, key_token, key_channel,
        shortest, HEADS, DIM, WIDTH, TILE,
    )  # fmt: skip
    best = tl.full([TILE], float("-inf"), tl.float32)
    found = tl.zeros([TILE], tl.int32)
    for start in range(0, num_b, TILE):
        b = start + tl.arange(0, TILE)
        unit_b = _unit_rows(
            key, first_b + 2 * b, b < num_b, key_head, key_token, key_channel,
            shortest, HEADS, DIM, WIDTH, TILE,
        )  # fmt: skip
        score = tl.dot(unit_a, tl.trans(unit_b), input_precision="ieee")
        score = tl.where((b < num_b)[None, :], score, float("-inf"))
        top, at = tl.max(score, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = top > best  # not on a tie: earlier tiles have the lower indices
        found = tl.where(better, start + at, found)
        best = tl.where(better, top, best)
    tl.store(strength + image * num_a + a, best, mask=a < num_a)
    tl.store(partner + image * num_a + a, found, mask=a < num_a)


@triton.jit
def _unit_rows(
    key, token, valid, key_head, key_token, key_channel,
    shortest, HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum some tokens' keys over the heads and divide by their length: ``(TILE, WIDTH)``."""
    channel = tl.arange(0, WIDTH)
    place = key + token[:, None] * key_token + channel[None, :] * key_channel
    inside = valid[:, None] & (channel < DIM)[None, :]
    total = tl.zeros([TILE, WIDTH], tl.float32)
    for head in range(HEADS):
        total += tl.load(place + head * key_head, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(total * total, axis=1))
    return total / tl.maximum(length, shortest)[:, None]


@triton.jit(do_not_specialize=["prefix", "num_a", "r", "left"])
def _assign_rows(
    strength, partner, rows, prefix, num_a, r, left, WIDTH: tl.constexpr, TILE: tl.constexpr
):
    """One image: each A-token's row in the merged batch."""
    image = tl.program_id(0)
    strength += image * num_a
    a = tl.arange(0, WIDTH)
    own = tl.load(strength + a, mask=a < num_a, other=float("-inf"))
    rank = tl.zeros([WIDTH], tl.int32)
    for start in range(0, num_a, TILE):
        other = start + tl.arange(0, TILE)
        edge = tl.load(strength + other, mask=other < num_a, other=float("-inf"))
        tie = (edge[None, :] == own[:, None]) & (other[None, :] < a[:, None])
        ahead = (edge[None, :] > own[:, None]) | tie
        rank += tl.sum((ahead & (other < num_a)[None, :]).to(tl.int32), axis=1)
    stays = ((rank >= r) & (a < num_a)).to(tl.int32)
    seat = tl.cumsum(stays, axis=0) - 1
    goal = tl.load(partner + image * num_a + a, mask=a < num_a, other=0)
    row = prefix + tl.where(stays == 1, seat, num_a - r + goal)
    tl.store(rows + image * num_a + a, image.to(tl.int64) * left + row, mask=a < num_a)


@triton.jit(do_not_specialize=["prefix", "odd", "num_a", "left_a", "tokens", "left"])
def _merge_rows(
    x, x_image, x_token, x_channel, size, rows, merged, merged_size,
    prefix, odd, num_a, left_a, tokens, left, dim,
    SIZED: tl.constexpr, WIDTH_A: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row of the merged batch, some of its channels: the mean of its tokens by their size."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    channel = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = channel < dim
    x += image * x_image + channel * x_channel
    # Prefix and B-tokens have a row of their own; those of staying A-tokens begin empty.
    first_b = prefix + left_a
    own = tl.where(row < prefix, row, prefix + 1 - odd + 2 * (row - first_b))
    total = tl.zeros([WIDTH], tl.float32)
    count = tl.sum(tl.zeros([1], tl.float32), axis=0)
    if (row < prefix) | (row >= first_b):
        count += tl.load(size + image * tokens + own) if SIZED else 1.0
        total += count * tl.load(x + own * x_token, mask=inside, other=0.0).to(tl.float32)
    a = tl.arange(0, WIDTH_A)
    goal = tl.load(rows + image * num_a + a, mask=a < num_a, other=-1)
    waiting = tl.where(goal == image * left + row, a, WIDTH_A)
    next_a = tl.min(waiting, axis=0)
    while next_a < WIDTH_A:
        token = prefix + odd + 2 * next_a
        weight = tl.load(size + image * tokens + token) if SIZED else 1.0
        total += weight * tl.load(x + token * x_token, mask=inside, other=0.0).to(tl.float32)
        count += weight
        next_a = tl.min(tl.where(a > next_a, waiting, WIDTH_A), axis=0)
    place = image * left + row
    tl.store(merged + place * dim + channel, total / count, mask=inside)
    tl.store(merged_size + place, count, mask=tl.program_id(2) == 0)
