"""Matching and merging (`tocom_core.merging`) as nodes of an ONNX graph.

For one image the tensors are so small that the number of nodes is what costs: each takes some
microseconds, and while one thread works on it the others wait. So the degree's sizes come from
outside (``merging_plan``), one sort tells both who goes and who stays, and pairs are added up by a
product with their incidence matrix.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tocom_core.onnx_nodes import MICROSOFT, Nodes

PLAN_ROW = 3
"""Numbers per block in a plan."""

_TINY = 1e-24
"""Under the root of a mean square, so that a metric without length gets none."""


def merging_plan(blocks: Sequence[tuple[int, int]], num_prefix_tokens: int) -> list[int]:
    """What the graph must know of a degree: for each block ``r``, ``|A| - r`` and ``|B|``.

    Args:
        blocks: for each block the number of patch tokens before and after it.
        num_prefix_tokens: how many tokens at the front never merge.
    """
    plan: list[int] = []
    for before, after in blocks:
        # Positions count from 0 over the whole sequence; even ones are set A.
        set_a = (before + 1 - num_prefix_tokens % 2) // 2
        plan += [before - after, set_a - (before - after), before - set_a]
    return plan


class Merging:
    """Merges tokens in one block after the other.

    Args:
        nodes: where the operations go.
        plan: the name of a graph input, int64 ``(PLAN_ROW * depth,)``: see ``merging_plan``.
        depth: number of blocks.
        num_prefix_tokens: how many tokens at the front never merge.
        width: of a token.
    """

    def __init__(
        self, nodes: Nodes, plan: str, depth: int, num_prefix_tokens: int, width: int
    ) -> None:
        self._nodes = nodes
        self._prefix = num_prefix_tokens
        self._width = width
        rows = nodes.ops("Split", plan, nodes.ints(*[2, 1] * depth), outputs=2 * depth, axis=0)
        self._parts = list(zip(rows[::2], rows[1::2], strict=True))
        self._first_a = num_prefix_tokens + num_prefix_tokens % 2
        self._first_b = num_prefix_tokens + 1 - num_prefix_tokens % 2

    def metric(self, key: str, heads: int, dim: int) -> str:
        """Directions of the sum of the keys over the heads: ``(B, N, D)`` to ``(B, N, d)``."""
        nodes, total = self._nodes, key
        if heads > 1:
            parts = nodes.ops("Split", key, nodes.ints(*[dim] * heads), outputs=heads, axis=2)
            total = nodes.op("Sum", *parts)
        # A root mean square times √d is the length.
        scale = nodes.array(np.full(dim, dim**-0.5, np.float32))
        return nodes.op("SimplifiedLayerNormalization", total, scale, epsilon=_TINY, axis=-1)

    def merge(self, metric: str, number: int, x: str, size: str | None) -> tuple[str, str]:
        """Merge the pairs of block ``number``.

        Args:
            metric: ``(B, N, d)``, unit vectors.
            number: of the block.
            x: ``(B, N, D)``.
            size: ``(B, N, 1)``; None is 1 for every token.

        Returns:
            Names of the tokens ``(B, N - r, D)`` and of their sizes.
        """
        nodes = self._nodes
        nodes.stage = "matching"
        going, staying, pairs = self._match(metric, *self._parts[number])
        nodes.stage = "merging"
        if size is None:
            ones = nodes.array(np.float32(1))
            whole = nodes.op("Pad", x, nodes.ints(0, 0, 0, 0, 0, 1), ones)
        else:
            whole = nodes.op("Concat", nodes.op("Mul", x, size), size, axis=2)
        # (B, N, D + 1): the sizes are summed along with the tokens.
        set_a, set_b = self._set_a(whole), self._set_b(whole)
        gone = nodes.op("GatherND", set_a, going, batch_dims=1)
        kept = nodes.op("GatherND", set_a, staying, batch_dims=1)
        parts = [kept, nodes.op("Add", set_b, nodes.op("MatMul", pairs, gone))]
        if self._prefix:
            parts.insert(0, nodes.slice(whole, 0, self._prefix))
        whole = nodes.op("Concat", *parts, axis=1)
        cut = nodes.ints(self._width, 1)
        summed, size = nodes.ops("Split", whole, cut, outputs=2, axis=2)
        return nodes.op("Div", summed, size), size

    def _match(self, metric: str, split: str, num_b: str) -> tuple[str, str, str]:
        """Find who goes ``(B, r, 1)`` and who stays ``(B, |A| - r, 1)``, both as places in A.

        The third name is that of the pairs, ``(B, |B|, r)``: 1 where a token goes to its partner.
        """
        nodes = self._nodes
        scores = self._similarities(metric)
        strength = nodes.op("ReduceMax", scores, axes=[2], keepdims=1)  # (B, |A|, 1)
        partner = nodes.op("ArgMax", scores, axis=2, keepdims=0)  # (B, |A|); the first of equals
        everyone = nodes.op("ReduceSum", split, keepdims=1)
        # The strongest first, and of equals the first.
        _, order = nodes.ops("TopK", strength, everyone, outputs=2, axis=1)
        going, rest = nodes.ops("Split", order, split, outputs=2, axis=1)
        how_many = nodes.slice(split, 1, 2, axis=0)
        staying, _ = nodes.ops("TopK", rest, how_many, outputs=2, axis=1, largest=0)
        partner = nodes.op("GatherND", partner, going, batch_dims=1)
        zero_one: Any = np.array([0, 1], np.float32)
        return going, staying, nodes.op("OneHot", partner, num_b, nodes.array(zero_one), axis=1)

    def _similarities(self, metric: str) -> str:
        """Of each token of A with each of B: ``(B, |A|, |B|)``."""
        set_a, set_b = self._set_a(metric), self._set_b(metric)
        return self._nodes.op("FusedMatMul", set_a, set_b, domain=MICROSOFT, transB=1)

    def _set_a(self, x: str) -> str:
        return self._nodes.slice(x, self._first_a, by=2)

    def _set_b(self, x: str) -> str:
        return self._nodes.slice(x, self._first_b, by=2)
