"""How many tokens each block removes, and what that saves in arithmetic.

A *schedule* is one number per block.  Users mostly pass one int ``r`` for all blocks ("degree").
What is really removed depends on how many patch tokens are still there, so that both the forward
pass and the arithmetic below ask ``removable``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tocom_core.errors import ScheduleError

Method = Literal["merge", "prune"]


@dataclass(frozen=True)
class ViTShape:
    """The sizes that decide how much arithmetic one image costs.

    ``stem_macs`` are the multiply-adds of the patch embedding and the classifier, which no degree
    changes.
    """

    num_patches: int
    num_prefix_tokens: int
    embed_dim: int
    depth: int
    mlp_macs_per_token: int
    stem_macs: int


class HasShape(Protocol):
    """Anything that knows its sizes and its method, such as ``CompressedViT``."""

    @property
    def shape(self) -> ViTShape:
        """Its sizes."""

    @property
    def method(self) -> Method:
        """How it removes tokens."""


def resolve_schedule(r: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Return one removal count per block.

    Args:
        r: one int for all blocks, or a sequence with one int per block.
        depth: the number of blocks.

    Raises:
        ScheduleError: a value is negative or not an int, or the length differs from ``depth``.
    """
    if not isinstance(r, int | Sequence):
        raise ScheduleError(f"r={r!r} must be an int or a sequence of {depth} ints")
    values = (r,) * depth if isinstance(r, int) else tuple(r)
    if len(values) != depth:
        raise ScheduleError(
            f"r has {len(values)} values but the model has {depth} blocks; pass one int, "
            f"or exactly {depth} of them"
        )
    for value in values:
        if type(value) is not int or value < 0:
            raise ScheduleError(f"r holds {value!r}; every value must be an int of 0 or more")
    return values


def removable(num_patches: int, r: int, method: Method = "merge") -> int:
    """How many of ``num_patches`` tokens a block really removes when asked for ``r``.

    Merging pairs tokens up, so at most half of them can go (Token Merging, section 3); pruning
    leaves at least one.
    """
    limit = num_patches // 2 if method == "merge" else num_patches - 1
    return max(0, min(r, limit))


def patch_counts(
    num_patches: int, schedule: Sequence[int], method: Method = "merge"
) -> Iterator[tuple[int, int]]:
    """Yield, per block, the patch tokens that its attention and its MLP see."""
    for r in schedule:
        before = num_patches
        num_patches -= removable(num_patches, r, method)
        yield before, num_patches


def count_macs(shape: ViTShape, r: int | Sequence[int] = 0, method: Method = "merge") -> int:
    """Multiply-adds of one image's forward pass at ``r``.

    Counted are the matrix products: stem, q/k/v and output projections, both attention products
    and the MLP.  Norms, activations, additions and the matching (under 1 % for ViT-Tiny, which has
    the least other work to hide it) are left out.
    """
    total, dim = shape.stem_macs, shape.embed_dim
    schedule = resolve_schedule(r, shape.depth)
    for before, after in patch_counts(shape.num_patches, schedule, method):
        attended = before + shape.num_prefix_tokens
        total += 4 * attended * dim**2 + 2 * attended**2 * dim
        total += (after + shape.num_prefix_tokens) * shape.mlp_macs_per_token
    return total


def arithmetic_ratio(model: HasShape, r: int | Sequence[int]) -> float:
    """How many times less arithmetic a forward pass takes at ``r`` than at 0."""
    return count_macs(model.shape, 0) / count_macs(model.shape, r, model.method)
