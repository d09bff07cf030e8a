"""The blocks of a compressed ViT as an ONNX graph: the degree is an input, so are the live weights.

Stem, pooling and head stay in PyTorch, where they are quick and come in many kinds. Two graphs per
model, with all of the blocks' parameters but the live ones inside: one without merging (r=0), one
that merges in every block. Inputs:

- ``tokens``: float32 ``(B, N, D)``, what the first block gets;
- ``removed``: int64 ``(depth,)``, tokens to merge per block, each at least 1 (merging graph only);
- ``qkv0 … qkvN``: float32 ``(3D, D)``, each block's fused query, key and value weight as timm has
  it. A runtime binds the very tensors that a `WeightMerger` writes to.

Outputs: ``features``, float32 ``(B, N', D)``, what the last block gives, and from the merging graph
``sizes``, float32 ``(B, N', 1)``, the patches behind each token.

Matching and merging are those of `tocom_core.merging`, written for a runtime that is good at matrix
products: pairs are added up by a product with their incidence matrix. Proportional attention needs
no bias: with ``p`` the plain attention,

    softmax(QKᵀ/√d + log s) V = (p · sV) / (p · s),

so the sizes go in as one more channel of the values, and the fused kernel stays a plain one.

Source: Token Merging (ICLR 2023), section 3; DESIGN section 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from timm.layers import LayerNorm
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tocom_core.compressed_vit import CompressedViT
from tocom_core.merging import SHORTEST

OPSET, IR_VERSION = 17, 8
MICROSOFT = "com.microsoft"


def unsupported_graph(model: CompressedViT) -> str | None:
    """Why there is no graph of this model's blocks; ``None`` if there is one."""
    if model.method != "merge":
        return f"its method is {model.method!r}; only merging has a graph"
    for number, block in enumerate(model.vit.blocks):
        part = _unknown_part(block)
        if part is not None:
            return f"block {number} has {part}, which the graph does not know"
    return None


def _unknown_part(block: Any) -> str | None:
    """Name a part of a block that the graph has no words for."""
    attn, mlp = block.attn, block.mlp
    parts = {
        "its norms behind the layers": type(block) is Block,
        "another MLP": type(mlp) is Mlp and isinstance(mlp.norm, nn.Identity),
        "another activation": type(getattr(mlp, "act", None)) is nn.GELU
        and mlp.act.approximate == "none",
        "another attention": type(attn) is Attention and isinstance(attn.norm, nn.Identity),
        "gated attention": getattr(attn, "gate", None) is None,
        "norms of another kind": all(
            type(norm) in (nn.LayerNorm, LayerNorm, nn.Identity)
            for norm in (block.norm1, block.norm2, attn.q_norm, attn.k_norm)
        ),
    }
    return next((part for part, known in parts.items() if not known), None)


def build_graph(model: CompressedViT, *, merging: bool) -> onnx.ModelProto:
    """Write the model as a graph.

    Args:
        model: in float32; the blocks' parameters except ``qkv.weight`` are copied.
        merging: whether tokens merge; without, the graph is that of r=0.

    Raises:
        ValueError: there is no graph of this model; see ``unsupported_graph``.
    """
    if (reason := unsupported_graph(model)) is not None:
        raise ValueError(reason)
    return _Writer(model, merging).write()


class _Writer:
    """Collects nodes; each ``op`` returns the name of its output."""

    def __init__(self, model: CompressedViT, merging: bool) -> None:
        self._model = model
        self._vit: Any = model.vit
        self._merging = merging
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self._count = 0
        self._stage = "other"  # each node's name begins with it: `stages` tells them apart by it

    def write(self) -> onnx.ModelProto:
        x, size = "tokens", None
        for number, block in enumerate(self._vit.blocks):
            x, size = self._block(block, number, x, size)
        depth, width = len(self._vit.blocks), self._vit.embed_dim
        inputs = [_describe("tokens", "B", "N", width)]
        outputs = [self._output(x, "features", width)]
        if size is not None:
            inputs.append(helper.make_tensor_value_info("removed", TensorProto.INT64, [depth]))
            outputs.append(self._output(size, "sizes", 1))
        inputs += [_describe(f"qkv{n}", 3 * width, width) for n in range(depth)]
        graph = helper.make_graph(self._nodes, "blocks", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _output(self, value: str, name: str, width: int) -> onnx.ValueInfoProto:
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        return _describe(name, "B", "left", width)

    def _block(self, block: Any, number: int, x: str, size: str | None) -> tuple[str, str | None]:
        self._stage = "attention"
        attended, key = self._attention(block.attn, number, self._norm(block.norm1, x), size)
        x = self.op("Add", x, self._linear(block.attn.proj, attended, scale=block.ls1))
        if self._merging:
            x, size = self._merge(self._metric(key, block.attn), number, x, size)
        self._stage = "mlp"
        hidden = self.op("MatMul", self._norm(block.norm2, x), self.weight(block.mlp.fc1.weight.T))
        hidden = self._gelu(hidden, block.mlp.fc1.bias)
        return self.op("Add", x, self._linear(block.mlp.fc2, hidden, scale=block.ls2)), size

    def _attention(self, attn: Any, number: int, x: str, size: str | None) -> tuple[str, str]:
        """Return ``(B, N, D)`` before the projection, and the keys ``(B, N, D)``."""
        heads, dim = attn.num_heads, attn.head_dim
        width = heads * dim
        flat = self.op("Reshape", x, self.ints([-1, width]))
        bias = [] if attn.qkv.bias is None else [self.weight(attn.qkv.bias)]
        qkv = self.op("Gemm", flat, f"qkv{number}", *bias, transB=1)
        shape = self.op("Concat", self._lead(x), self.ints([3 * width]), axis=0)
        qkv = self.op("Reshape", qkv, shape)
        query, key, value = self.ops("Split", qkv, self.ints([width] * 3), outputs=3, axis=2)
        query = self._head_norm(attn.q_norm, query, heads, dim)
        key = self._head_norm(attn.k_norm, key, heads, dim)
        if size is not None and self._model.prop_attn:
            value = self.op("Reshape", value, self.ints([0, 0, heads, dim]))
            one = self.op("Unsqueeze", size, self.ints([3]))  # (B, N, 1, 1)
            sizes = self.op("Tile", one, self.ints([1, 1, heads, 1]))
            value = self.op("Concat", self.op("Mul", value, one), sizes, axis=3)
            value = self.op("Reshape", value, self.ints([0, 0, heads * (dim + 1)]))
        out = self.op(
            "MultiHeadAttention",
            *(query, key, value),
            domain=MICROSOFT,
            num_heads=heads,
            scale=float(attn.scale),
        )
        if size is not None and self._model.prop_attn:
            out = self.op("Reshape", out, self.ints([0, 0, heads, dim + 1]))
            summed, weight = self.ops("Split", out, self.ints([dim, 1]), outputs=2, axis=3)
            out = self.op("Reshape", self.op("Div", summed, weight), self.ints([0, 0, width]))
        return out, key

    def _head_norm(self, layer: Any, x: str, heads: int, dim: int) -> str:
        """Normalise each head's queries or keys."""
        if isinstance(layer, nn.Identity):
            return x
        split = self.op("Reshape", x, self.ints([0, 0, heads, dim]))
        return self.op("Reshape", self._norm(layer, split), self.ints([0, 0, heads * dim]))

    def _metric(self, key: str, attn: Any) -> str:
        """Return unit vectors ``(B, N, d)`` along the sum of the keys over the heads."""
        self._stage = "matching"
        split = self.op("Reshape", key, self.ints([0, 0, attn.num_heads, attn.head_dim]))
        total = self.op("ReduceSum", split, self.ints([2]), keepdims=0)
        length = self.op("ReduceL2", total, axes=[2], keepdims=1)
        return self.op("Div", total, self.op("Max", length, self.array(np.float32(SHORTEST))))

    def _merge(self, metric: str, number: int, x: str, size: str | None) -> tuple[str, str]:
        """Merge ``removed[number]`` pairs; ``size`` None is 1 for every token."""
        prefix = int(self._vit.num_prefix_tokens)
        first_a, first_b = prefix + prefix % 2, prefix + 1 - prefix % 2
        removed = self.op("Slice", "removed", *map(self.ints, ([number], [number + 1])))
        a, b = self._every_other(metric, first_a), self._every_other(metric, first_b)
        scores = self.op("MatMul", a, self.op("Transpose", b, perm=[0, 2, 1]))
        strength = self.op("ReduceMax", scores, axes=[2], keepdims=0)  # (B, na)
        partner = self.op("ArgMax", scores, axis=2, keepdims=0)
        _, going = self.ops("TopK", strength, removed, outputs=2, axis=1)  # (B, r)

        # Those that stay, in order: the largest of (na - position), where the going ones count 0.
        places = self.op("Shape", strength)
        num_a = self.op("Slice", places, *map(self.ints, ([1], [2])))
        span = self.op("Squeeze", num_a)
        ranks = self.op("Cast", self.op("Range", span, self.scalar(0), self.scalar(-1)), to=1)
        ranks = self.op("Expand", ranks, places)
        zeros = self.op("Expand", self.array(np.zeros((1, 1), np.float32)), self.op("Shape", going))
        ranks = self.op("ScatterElements", ranks, going, zeros, axis=1)
        _, staying = self.ops("TopK", ranks, self.op("Sub", num_a, removed), outputs=2, axis=1)

        self._stage = "merging"
        # Pairs as a matrix (B, nb, r): product with it adds each going token to its partner.
        partner = self.op("GatherElements", partner, going, axis=1)
        num_b = self.op(
            "Squeeze", self.op("Slice", self.op("Shape", b), *map(self.ints, ([1], [2])))
        )
        columns = self.op("Range", self.scalar(0), num_b, self.scalar(1))
        pairs = self.op(
            "Equal",
            self.op("Unsqueeze", partner, self.ints([1])),
            self.op("Unsqueeze", columns, self.ints([0, 2])),
        )
        pairs = self.op("Cast", pairs, to=1)

        if size is None:
            shape = self.op("Concat", self._lead(x), self.ints([1]), axis=0)
            size = self.op("Expand", self.array(np.ones((1, 1, 1), np.float32)), shape)
            weighted = x
        else:
            weighted = self.op("Mul", x, size)
        whole = self.op("Concat", weighted, size, axis=2)  # (B, N, D + 1), sums in one product
        set_a, set_b = self._every_other(whole, first_a), self._every_other(whole, first_b)
        last = self.ints([2])
        gone = self.op("GatherND", set_a, self.op("Unsqueeze", going, last), batch_dims=1)
        kept = self.op("GatherND", set_a, self.op("Unsqueeze", staying, last), batch_dims=1)
        merged = self.op("Add", set_b, self.op("MatMul", pairs, gone))
        parts = [kept, merged]
        if prefix:
            parts.insert(0, self._slice(whole, 0, prefix))
        whole = self.op("Concat", *parts, axis=1)
        summed, size = self.ops(
            "Split", whole, self.ints([self._vit.embed_dim, 1]), outputs=2, axis=2
        )
        return self.op("Div", summed, size), size

    # Layers.

    def _norm(self, layer: Any, x: str) -> str:
        if isinstance(layer, nn.Identity):
            return x
        scale, shift = layer.weight, layer.bias
        if scale is None:
            scale = torch.ones(layer.normalized_shape)
        given = [x, self.weight(scale)] + ([] if shift is None else [self.weight(shift)])
        return self.op("LayerNormalization", *given, axis=-1, epsilon=layer.eps)

    def _linear(self, layer: Any, x: str, scale: nn.Module) -> str:
        """A linear layer; a layer scale behind it is folded in."""
        weight, bias = layer.weight.detach(), layer.bias
        gamma = getattr(scale, "gamma", None)
        if gamma is not None:
            weight = weight * gamma.detach()[:, None]
            bias = None if bias is None else bias * gamma
        x = self.op("MatMul", x, self.weight(weight.T))
        return x if bias is None else self.op("Add", x, self.weight(bias))

    def _gelu(self, x: str, bias: Tensor | None) -> str:
        if bias is None:
            return self.op("Gelu", x, domain=MICROSOFT)
        return self.op("BiasGelu", x, self.weight(bias), domain=MICROSOFT)

    def _every_other(self, x: str, start: int) -> str:
        far = np.iinfo(np.int64).max
        return self.op("Slice", x, *map(self.ints, ([start], [far], [1], [2])))

    def _slice(self, x: str, start: int, end: int) -> str:
        return self.op("Slice", x, *map(self.ints, ([start], [end], [1])))

    def _lead(self, x: str) -> str:
        """The first two sizes of a tensor."""
        return self.op("Slice", self.op("Shape", x), *map(self.ints, ([0], [2])))

    # Nodes and constants.

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        names = [self._name(kind.lower()) for _ in range(outputs)]
        self._nodes.append(
            helper.make_node(
                kind, inputs, names, f"{self._stage}/{names[0]}", domain=domain, **attributes
            )
        )
        return names

    def ints(self, values: Sequence[int]) -> str:
        return self._constant(("ints", *values), np.array(values, np.int64))

    def scalar(self, value: int) -> str:
        return self._constant(("scalar", value), np.array(value, np.int64))

    def weight(self, tensor: Tensor) -> str:
        return self.array(tensor.detach().float().cpu().contiguous().numpy())

    def array(self, values: Any) -> str:
        name = self._name("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _constant(self, key: tuple[Any, ...], values: Any) -> str:
        if key not in self._known:
            self._known[key] = self.array(values)
        return self._known[key]

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def _describe(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
