"""Writing an ONNX graph node by node: each operation returns the name of what it computes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operations."""

_OPSET, _IR_VERSION = 17, 8
_END = int(np.iinfo(np.int64).max)


class Nodes:
    """Collects nodes and constants; equal lists of integers become one constant.

    Attributes:
        stage: what the nodes to come belong to. Their names begin with it: `stage_trace` tells them
            apart by it.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        self._known: dict[tuple[int, ...], str] = {}
        self._count = 0
        self.stage = "other"

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return what was written, as a model."""
        graph = helper.make_graph(self._nodes, "vit", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add an operation with one output."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add an operation with several outputs."""
        names = [self._name(kind.lower()) for _ in range(outputs)]
        self._nodes.append(
            helper.make_node(
                kind, inputs, names, f"{self.stage}/{names[0]}", domain=domain, **attributes
            )
        )
        return names

    def output(self, value: str, name: str) -> None:
        """Let an output of the graph have a value."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))

    def ints(self, *values: int) -> str:
        """Name a constant vector of integers."""
        if values not in self._known:
            self._known[values] = self.array(np.array(values, np.int64))
        return self._known[values]

    def array(self, values: Any) -> str:
        """Name a constant."""
        name = self._name("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, tensor: Tensor) -> str:
        """Name a constant with a parameter's present values."""
        return self.array(tensor.detach().float().cpu().contiguous().numpy())

    def slice(
        self, x: str, start: int, end: int | None = None, *, axis: int = 1, by: int = 1
    ) -> str:
        """Take every ``by``-th of the places from ``start`` to before ``end``."""
        bounds = (start, _END if end is None else end, axis, by)
        return self.op("Slice", x, *map(self.ints, bounds))

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def describe(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """Say that an input or output is float32 and has this shape; a name stands for any size."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def describe_ints(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """``describe``, for int64."""
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)
