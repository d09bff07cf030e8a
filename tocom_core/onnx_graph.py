"""A compressed ViT as an ONNX graph: the degree is an input, so are the live weights.

Two graphs per model, with all parameters but the live ones inside: one without merging (r=0), one
that merges in every block. Inputs:

- ``pixels``: float32 ``(B, C, H, W)``, normalised images; or, where the stem is of a kind that the
  graph does not know and stays in PyTorch, ``tokens``: float32 ``(B, N, D)``, what the first block
  gets;
- ``plan``: int64, what `tocom_core.onnx_merging.merging_plan` makes of a degree; at least one token
  merges in each block (merging graph only);
- ``query0 … queryN`` and ``value0 … valueN``: float32 ``(D, D)``, those rows of each block's fused
  weight as timm has it. A runtime binds the very memory that a `WeightMerger` writes to. The keys'
  rows never change, so they are inside and packed.

Outputs: ``logits``, float32 ``(B, classes)``; or, where pooling and head stay in PyTorch,
``features``, float32 ``(B, N', D)``, what the last block gives, and from the merging graph
``sizes``, float32 ``(B, N', 1)``, the patches behind each token.

Proportional attention needs no bias: with ``p`` the plain attention,

    softmax(QKᵀ/√d + log s) V = (p · sV) / (p · s),

so the sizes go in as one more channel of the values, and the fused kernel stays a plain one.

Source: Token Merging (ICLR 2023), section 3; DESIGN section 2.
"""

from typing import Any

import numpy as np
import onnx
import torch
from timm.layers import LayerNorm, PatchEmbed
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tocom_core.compressed_vit import CompressedViT
from tocom_core.onnx_merging import PLAN_ROW, Merging
from tocom_core.onnx_nodes import MICROSOFT, Nodes, describe, describe_ints

LIVE = ("query", "value")
"""What the live inputs' names begin with."""


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
            map(_is_known_norm, (block.norm1, block.norm2, attn.q_norm, attn.k_norm))
        ),
    }
    return next((part for part, known in parts.items() if not known), None)


def _is_known_norm(layer: nn.Module) -> bool:
    return type(layer) in (nn.LayerNorm, LayerNorm, nn.Identity)


def knows_stem(vit: Any) -> bool:
    """Whether the graph begins with pixels: one convolution into patches, positions added."""
    stem = vit.patch_embed
    return (
        type(vit)._pos_embed is VisionTransformer._pos_embed
        and type(stem) is PatchEmbed
        and type(stem.proj) is nn.Conv2d
        and isinstance(stem.norm, nn.Identity)
        and stem.flatten
        and not (stem.dynamic_img_pad or vit.dynamic_img_size)
        and _is_known_norm(vit.norm_pre)
    )


def knows_head(vit: Any) -> bool:
    """Whether the graph ends with logits: a linear layer on the class token."""
    return (
        type(vit).forward_head is VisionTransformer.forward_head
        and vit.global_pool == "token"
        and type(vit.head) is nn.Linear
        and _is_known_norm(vit.norm)
        and _is_known_norm(vit.fc_norm)
    )


def build_graph(model: CompressedViT, *, merging: bool) -> onnx.ModelProto:
    """Write the model as a graph.

    Args:
        model: in float32; its parameters except query and value weights are copied.
        merging: whether tokens merge; without, the graph is that of r=0.

    Raises:
        ValueError: there is no graph of this model; see ``unsupported_graph``.
    """
    if (reason := unsupported_graph(model)) is not None:
        raise ValueError(reason)
    return _Writer(model, merging).write()


class _Writer(Nodes):
    """Writes a model's layers."""

    def __init__(self, model: CompressedViT, merging: bool) -> None:
        super().__init__()
        self._vit: Any = model.vit
        self._depth, self._width = model.depth, model.embed_dim
        self._prop_attn = model.prop_attn
        self._merging: Merging | None = None
        if merging:
            prefix = int(self._vit.num_prefix_tokens)
            self._merging = Merging(self, "plan", model.depth, prefix, model.embed_dim)

    def write(self) -> onnx.ModelProto:
        vit, width = self._vit, self._width
        if knows_stem(vit):
            inputs = [describe("pixels", "B", vit.patch_embed.proj.in_channels, "H", "W")]
            x = self._stem("pixels")
        else:
            inputs, x = [describe("tokens", "B", "N", width)], "tokens"
        size: str | None = None
        for number, block in enumerate(vit.blocks):
            x, size = self._block(block, number, x, size)
        if self._merging is not None:
            inputs.append(describe_ints("plan", PLAN_ROW * self._depth))
        names = (f"{kind}{n}" for n in range(self._depth) for kind in LIVE)
        inputs += [describe(name, width, width) for name in names]
        return self.model(inputs, self._end(x, size))

    def _stem(self, pixels: str) -> str:
        """``(B, C, H, W)`` to ``(B, N, D)``."""
        vit = self._vit
        self.stage = "stem"
        conv, grid = vit.patch_embed.proj, vit.patch_embed.grid_size
        bias = [] if conv.bias is None else [self.weight(conv.bias)]
        x = self.op(
            "Conv",
            *(pixels, self.weight(conv.weight), *bias),
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
        )
        x = self.op("Reshape", x, self.ints(0, self._width, grid[0] * grid[1]))
        x = self.op("Transpose", x, perm=[0, 2, 1])
        # Prefix tokens and positions are what is made of patches that are zero.
        with torch.no_grad():
            base = vit._pos_embed(torch.zeros(1, grid[0] * grid[1], self._width))
        if vit.num_prefix_tokens:
            x = self.op("Pad", x, self.ints(0, int(vit.num_prefix_tokens), 0, 0, 0, 0))
        return self._norm(vit.norm_pre, self.op("Add", x, self.weight(base)))

    def _end(self, x: str, size: str | None) -> list[onnx.ValueInfoProto]:
        """Head and outputs."""
        vit = self._vit
        self.stage = "head"
        if not knows_head(vit):
            self.output(x, "features")
            if size is None:
                return [describe("features", "B", "left", self._width)]
            self.output(size, "sizes")
            return [
                describe("features", "B", "left", self._width),
                describe("sizes", "B", "left", 1),
            ]
        x = self._norm(vit.fc_norm, self._norm(vit.norm, self.slice(x, 0, 1)))
        x = self.op("Reshape", x, self.ints(0, self._width))
        bias = [] if vit.head.bias is None else [self.weight(vit.head.bias)]
        logits = self.op("Gemm", x, self.weight(vit.head.weight), *bias, transB=1)
        self.output(logits, "logits")
        return [describe("logits", "B", vit.head.out_features)]

    def _block(self, block: Any, number: int, x: str, size: str | None) -> tuple[str, str | None]:
        self.stage = "attention"
        attended, key = self._attention(block.attn, number, self._norm(block.norm1, x), size)
        fused = block.attn.qkv.bias
        shift = None if fused is None else fused[2 * self._width :]
        projected = self._linear(block.attn.proj, attended, block.ls1, shift)
        x = self.op("Add", x, projected)
        if self._merging is not None:
            self.stage = "matching"
            metric = self._merging.metric(key, block.attn.num_heads, block.attn.head_dim)
            x, size = self._merging.merge(metric, number, x, size)
        self.stage = "mlp"
        hidden = self.op("MatMul", self._norm(block.norm2, x), self.weight(block.mlp.fc1.weight.T))
        hidden = self._gelu(hidden, block.mlp.fc1.bias)
        return self.op("Add", x, self._linear(block.mlp.fc2, hidden, block.ls2)), size

    def _attention(self, attn: Any, number: int, x: str, size: str | None) -> tuple[str, str]:
        """Return ``(B, N, D)`` before the projection, and the keys ``(B, N, D)``."""
        heads, dim = attn.num_heads, attn.head_dim
        width = heads * dim
        query = self.op("FusedMatMul", x, f"query{number}", domain=MICROSOFT, transB=1)
        key = self.op("MatMul", x, self.weight(attn.qkv.weight[width : 2 * width].T))
        value = self.op("FusedMatMul", x, f"value{number}", domain=MICROSOFT, transB=1)
        if attn.qkv.bias is not None:  # the values' part is in the projection's
            query = self.op("Add", query, self.weight(attn.qkv.bias[:width]))
            key = self.op("Add", key, self.weight(attn.qkv.bias[width : 2 * width]))
        query = self._head_norm(attn.q_norm, query, heads, dim)
        key = self._head_norm(attn.k_norm, key, heads, dim)
        weigh = size is not None and self._prop_attn
        if size is not None and weigh:
            value = self.op("Reshape", value, self.ints(0, 0, heads, dim))
            value = self.op("Pad", value, self.ints(*[0] * 7, 1), self.array(np.float32(1)))
            value = self.op("Reshape", value, self.ints(0, 0, heads * (dim + 1)))
            value = self.op("Mul", value, size)
        out = self.op(
            "MultiHeadAttention",
            *(query, key, value),
            domain=MICROSOFT,
            num_heads=heads,
            scale=float(attn.scale),
        )
        if weigh:
            out = self.op("Reshape", out, self.ints(0, 0, heads, dim + 1))
            summed, weight = self.ops("Split", out, self.ints(dim, 1), outputs=2, axis=3)
            out = self.op("Reshape", self.op("Div", summed, weight), self.ints(0, 0, heads * dim))
        return out, key

    def _head_norm(self, layer: Any, x: str, heads: int, dim: int) -> str:
        """Normalise each head's queries or keys."""
        if isinstance(layer, nn.Identity):
            return x
        split = self.op("Reshape", x, self.ints(0, 0, heads, dim))
        return self.op("Reshape", self._norm(layer, split), self.ints(0, 0, heads * dim))

    def _norm(self, layer: Any, x: str) -> str:
        if isinstance(layer, nn.Identity):
            return x
        scale, shift = layer.weight, layer.bias
        if scale is None:
            scale = torch.ones(layer.normalized_shape)
        given = [x, self.weight(scale)] + ([] if shift is None else [self.weight(shift)])
        return self.op("LayerNormalization", *given, axis=-1, epsilon=layer.eps)

    def _linear(self, layer: Any, x: str, scale: nn.Module, shift: Tensor | None = None) -> str:
        """A linear layer; a layer scale behind it is folded in, and so is what is added before."""
        weight, bias = layer.weight.detach(), layer.bias
        if (
            shift is not None
        ):  # attention's weights sum to 1, so it leaves its values' bias as it is
            moved = weight @ shift.detach()
            bias = moved if bias is None else bias + moved
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
