"""The method once more, slow and obvious: float64, one image at a time, loops over tokens.

Written from the mathematics (DESIGN section 2) to judge the package by; it shares no code with it.
What no degree changes (patch embedding, norms, linear layers, the MLP) is timm's own in float64.
Everything else (which tokens merge, what a merged token is, attention with sizes, pooling, pruning,
the bank's delta) is spelled out here.

A choice between nearly equal similarities may fall either way in float32.  ``Outcome.margin`` is
the closest call of a forward pass, so that a test can tell that its input holds no near-tie.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Vector = np.ndarray
Vectors = list[Vector]


@dataclass
class Outcome:
    """What one forward pass gave, and the closest decision on the way."""

    logits: Tensor
    margin: float


@dataclass
class Margin:
    """The smallest distance between a value that was chosen and one that was not."""

    smallest: float = math.inf

    def note(self, chosen: float, rejected: float) -> None:
        """Remember one decision."""
        self.smallest = min(self.smallest, abs(chosen - rejected))


# --- Matching, merging, pruning -------------------------------------------------------------------


def cosine(a: Vector, b: Vector) -> float:
    """Cosine similarity; 0 with a zero vector."""
    norm = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / norm if norm > 0 else 0.0


def match(
    metric: Sequence[Vector], r: int, num_prefix: int, margin: Margin | None = None
) -> dict[int, int]:
    """Which even-positioned patch token merges into which odd-positioned one."""
    margin = margin or Margin()
    patches = range(num_prefix, len(metric))
    set_a = [n for n in patches if n % 2 == 0]
    set_b = [n for n in patches if n % 2 == 1]
    edges: list[tuple[float, int, int, float]] = []
    for a in set_a:
        best, best_b, second = -math.inf, -1, -math.inf
        for b in set_b:
            similarity = cosine(metric[a], metric[b])
            if similarity > best:
                best, best_b, second = similarity, b, best
            elif similarity > second:
                second = similarity
        edges.append((best, a, best_b, second))
    r = min(r, len(patches) // 2)
    edges.sort(key=lambda edge: (-edge[0], edge[1]))
    if 0 < r < len(edges):
        margin.note(edges[r - 1][0], edges[r][0])
    for best, _, _, second in edges[:r]:
        margin.note(best, second)
    return {a: b for _, a, b, _ in edges[:r]}


def order_after(pairs: dict[int, int], tokens: int, num_prefix: int) -> list[int]:
    """The positions that survive: prefix, then A patches, then B; all as they were if none goes."""
    if not pairs:
        return list(range(tokens))
    survivors = [n for n in range(num_prefix, tokens) if n not in pairs]
    return [
        *range(num_prefix),
        *[n for n in survivors if n % 2 == 0],
        *[n for n in survivors if n % 2 == 1],
    ]


def merge(
    x: Sequence[Vector], size: Sequence[float], pairs: dict[int, int], num_prefix: int
) -> tuple[Vectors, list[float]]:
    """Size-weighted means; sizes add up."""
    merged_x, merged_size = [], []
    for kept in order_after(pairs, len(x), num_prefix):
        members = [kept] + [a for a, b in pairs.items() if b == kept]
        total = sum(size[n] for n in members)
        mean = sum((size[n] * x[n] for n in members), np.zeros_like(x[kept])) / total
        merged_x.append(mean)
        merged_size.append(float(total))
    return merged_x, merged_size


def prune(
    x: Sequence[Vector], attention: Sequence[float], r: int, num_prefix: int, margin: Margin
) -> Vectors:
    """Drop the ``r`` patch tokens with the least attention, but not the last one."""
    patches = sorted(range(num_prefix, len(x)), key=lambda n: (attention[n], n))
    r = min(r, len(patches) - 1)
    if 0 < r < len(patches):
        margin.note(attention[patches[r - 1]], attention[patches[r]])
    dropped = set(patches[:r])
    return [token for n, token in enumerate(x) if n not in dropped]


# --- Attention and pooling ------------------------------------------------------------------------


def softmax(values: Sequence[float]) -> list[float]:
    """Exponentials that sum to 1."""
    highest = max(values)
    exponentials = [math.exp(value - highest) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def attend(query: Vector, keys: Vectors, size: Sequence[float] | None) -> list[float]:
    """Weights of one query over all keys: ``softmax(q·k/√d + log s)``."""
    scale = 1 / math.sqrt(len(query))
    scores = [float(query @ key) * scale for key in keys]
    if size is not None:
        scores = [score + math.log(s) for score, s in zip(scores, size, strict=True)]
    return softmax(scores)


def weighted_sum(weights: Sequence[float], values: Vectors) -> Vector:
    """Sum of weight times value."""
    total = np.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        total = total + weight * value
    return total


def through(module: nn.Module, x: Sequence[Vector]) -> Vectors:
    """Apply a module of the float64 model to tokens."""
    out = module(torch.from_numpy(np.stack(x)).unsqueeze(0))
    return list(out.squeeze(0).detach().numpy())


@dataclass
class Attended:
    """Output of one attention layer, with ``query[head][token]`` and ``key[head][token]``."""

    out: Vectors
    query: list[Vectors] = field(default_factory=list)
    key: list[Vectors] = field(default_factory=list)


def self_attention(attn: Any, x: Vectors, size: Sequence[float] | None) -> Attended:
    """Multi-head attention, head by head and query by query."""
    heads, width = attn.num_heads, attn.head_dim
    result = Attended([])
    outputs: list[Vectors] = [[] for _ in x]
    fused = through(attn.qkv, x)
    for head in range(heads):

        def part(which: int, head: int = head) -> Vectors:
            first = which * heads * width + head * width
            return [row[first : first + width] for row in fused]

        query, key, value = through(attn.q_norm, part(0)), through(attn.k_norm, part(1)), part(2)
        for n, one in enumerate(query):
            outputs[n].append(weighted_sum(attend(one, key, size), value))
        result.query.append(query)
        result.key.append(key)
    joined = through(attn.norm, [np.concatenate(parts) for parts in outputs])
    if getattr(attn, "gate", None) is not None:
        gates = through(attn.gate, x)
        joined = [y / (1 + np.exp(-gate)) for y, gate in zip(joined, gates, strict=True)]
    result.out = through(attn.proj, joined)
    return result


def mean_over_heads(per_head: list[Vectors]) -> Vectors:
    """``[head][token]`` to ``[token]``."""
    heads, tokens = len(per_head), len(per_head[0])
    return [np.sum([per_head[h][n] for h in range(heads)], axis=0) / heads for n in range(tokens)]


def class_attention(attended: Attended) -> list[float]:
    """The first token's attention to every token, mean over heads."""
    heads = len(attended.query)
    rows = [attend(attended.query[h][0], attended.key[h], None) for h in range(heads)]
    return [sum(row[n] for row in rows) / heads for n in range(len(rows[0]))]


def attention_pool(pool: Any, x: Vectors, size: Sequence[float] | None) -> Vector:
    """Pooling by a learned query that attends to all tokens."""
    heads, width = pool.num_heads, pool.head_dim
    query = through(pool.q, list(pool.latent[0].detach().numpy()))[0]
    kv = through(pool.kv, x)
    parts = []
    for head in range(heads):
        first, dim = head * width, heads * width
        keys = through(pool.k_norm, [row[first : first + width] for row in kv])
        values = [row[dim + first : dim + first + width] for row in kv]
        one = through(pool.q_norm, [query[first : first + width]])[0]
        parts.append(weighted_sum(attend(one, keys, size), values))
    out = through(pool.proj, [np.concatenate(parts)])
    if pool.mlp is not None:
        out = [out[0] + through(pool.mlp, through(pool.norm, out))[0]]
    return out[0]


# --- The whole model ------------------------------------------------------------------------------


class ReferenceViT:
    """A timm VisionTransformer in float64 whose forward pass takes ``r``."""

    def __init__(self, vit: Any, method: str = "merge", prop_attn: bool = True) -> None:
        self._vit = copy.deepcopy(vit).double().eval()
        self._method, self._prop_attn = method, prop_attn
        self._margin = Margin()

    @torch.no_grad()
    def __call__(self, images: Tensor, r: int | Sequence[int]) -> Outcome:
        """Classify ``(B, 3, H, W)`` images one by one."""
        self._margin = Margin()
        schedule = [r] * len(self._vit.blocks) if isinstance(r, int) else list(r)
        logits = [self._classify(image, schedule) for image in images.double()]
        return Outcome(torch.stack(logits), self._margin.smallest)

    def _classify(self, image: Tensor, schedule: Sequence[int]) -> Tensor:
        vit = self._vit
        stem = vit.norm_pre(vit._pos_embed(vit.patch_embed(image.unsqueeze(0))))
        x: Vectors = list(stem[0].numpy())
        size = [1.0] * len(x)
        for block, r in zip(vit.blocks, schedule, strict=True):
            x, size = self._block(block, x, size, r)
        return self._head(through(vit.norm, x), size)

    def _block(
        self, block: Any, x: Vectors, size: list[float], r: int
    ) -> tuple[Vectors, list[float]]:
        weigh = size if self._prop_attn else None
        post_norm = type(block).__name__ == "ResPostBlock"
        attended = self_attention(block.attn, x if post_norm else through(block.norm1, x), weigh)
        update = through(block.norm1 if post_norm else block.ls1, attended.out)
        x = [a + b for a, b in zip(x, update, strict=True)]
        x, size = self._remove(attended, x, size, r)
        if post_norm:
            update = through(block.norm2, through(block.mlp, x))
        else:
            update = through(block.ls2, through(block.mlp, through(block.norm2, x)))
        return [a + b for a, b in zip(x, update, strict=True)], size

    def _remove(
        self, attended: Attended, x: Vectors, size: list[float], r: int
    ) -> tuple[Vectors, list[float]]:
        prefix = self._vit.num_prefix_tokens
        if r == 0:
            return x, size
        if self._method == "prune":
            x = prune(x, class_attention(attended), r, prefix, self._margin)
            return x, [1.0] * len(x)
        pairs = match(mean_over_heads(attended.key), r, prefix, self._margin)
        return merge(x, size, pairs, prefix)

    def _head(self, x: Vectors, size: list[float]) -> Tensor:
        vit = self._vit
        if hasattr(vit, "head_dist"):
            class_logits, distilled = through(vit.head, x[:1])[0], through(vit.head_dist, x[1:2])[0]
            return torch.from_numpy((class_logits + distilled) / 2)
        if vit.global_pool == "":
            return torch.from_numpy(np.stack(through(vit.head, through(vit.fc_norm, x))))
        pooled = through(vit.fc_norm, [self._pool(x, size)])
        return torch.from_numpy(through(vit.head, pooled)[0])

    def _pool(self, x: Vectors, size: list[float]) -> Vector:
        vit = self._vit
        if vit.global_pool == "token":
            return x[0]
        if not vit.pool_include_prefix:
            x, size = x[vit.num_prefix_tokens :], size[vit.num_prefix_tokens :]
        if vit.global_pool == "map":
            return attention_pool(vit.attn_pool, x, size if self._prop_attn else None)
        mean = weighted_sum([s / sum(size) for s in size], x)
        highest = np.stack(x).max(axis=0)
        return {"avg": mean, "max": highest, "avgmax": (mean + highest) / 2}[vit.global_pool]


# --- The bank -------------------------------------------------------------------------------------


def bank_delta(
    lora_a: Tensor, lora_b: Tensor, rank: int, r_source: int, r_target: int, scaling: float
) -> Tensor:
    """``±s Σ B_i A_i`` over the groups between two degrees, one outer product at a time.

    Group ``i`` (from 1) is rows ``(i-1)·h … i·h`` of ``lora_a: (K·h, D)`` and the same columns of
    ``lora_b: (D, K·h)``.
    """
    dim = lora_a.shape[1]
    total = torch.zeros(dim, dim, dtype=torch.float64)
    for group in range(min(r_source, r_target) + 1, max(r_source, r_target) + 1):
        for row in range((group - 1) * rank, group * rank):
            total += torch.outer(lora_b[:, row].double(), lora_a[row].double())
    return scaling * total if r_target >= r_source else -scaling * total
