"""What a model consists of: operators, multiply-accumulates, the integer share, bytes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from onnxfold.passes.walk import all_graphs, all_nodes

_FLOAT_LINEAR = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_INTEGER_LINEAR = {
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "ConvInteger": 1,
    "MatMulInteger": 1,
    "com.microsoft::QGemm": 3,
    "com.microsoft::MatMulIntegerToFloat": 1,
    "com.microsoft::DynamicQuantizeMatMul": 1,
}
_TRANSPOSABLE = {"Gemm", "com.microsoft::QGemm"}


@dataclass(frozen=True)
class Census:
    """A count of what is in a model, bodies and local functions included.

    Attributes:
        ops: How often each operator occurs (``domain::Op`` outside ai.onnx).
        macs: Multiply-accumulates of one run in linear operators; a symbolic dimension counts 1.
        integer_macs: Those of them done on integers.
        unknown_macs: Linear operators whose shapes are not known, which ``macs`` leaves out.
        parameters: Elements of all initializers and Constant nodes' tensors.
        parameter_bytes: Their bytes.
    """

    ops: dict[str, int]
    macs: int
    integer_macs: int
    unknown_macs: int
    parameters: int
    parameter_bytes: int

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates done on integers, 0 to 1."""
        return self.integer_macs / self.macs if self.macs else 0.0

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {**asdict(self), "integer_share": self.integer_share}


def op_key(node: ir.Node) -> str:
    """``Conv``, or ``com.microsoft::QGemm`` outside ai.onnx."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def take_census(model: ir.Model) -> Census:
    """Count what is in ``model``; run ``infer-shapes`` before, or most MACs are unknown."""
    ops: Counter[str] = Counter()
    macs = integer_macs = unknown = 0
    for node in all_nodes(model):
        key = op_key(node)
        ops[key] += 1
        if key not in _FLOAT_LINEAR and key not in _INTEGER_LINEAR:
            continue
        count = node_macs(node)
        if count is None:
            unknown += 1
            continue
        macs += count
        integer_macs += count if key in _INTEGER_LINEAR else 0
    tensors = [
        value.const_value
        for graph in all_graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    tensors += [
        node.attributes["value"].as_tensor()
        for node in all_nodes(model)
        if node.op_type == "Constant" and "value" in node.attributes
    ]
    ordered = dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))
    return Census(
        ordered,
        macs,
        integer_macs,
        unknown,
        sum(tensor.size for tensor in tensors),
        sum(tensor.nbytes for tensor in tensors),
    )


def node_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one run of a linear operator; None where shapes are not known.

    Output elements times the elements of one output's weights: a convolution reads
    ``C_in / group * kernel``, a transposed one spreads each input over ``C_out / group * kernel``,
    a matrix product reads its inner dimension.
    """
    key = op_key(node)
    position = _FLOAT_LINEAR.get(key) or _INTEGER_LINEAR.get(key)
    if position is None or position >= len(node.inputs):
        return None
    weights = _dims(node.inputs[position])
    source = _dims(node.inputs[0])
    output = _dims(node.outputs[0])
    if weights is None or source is None or output is None:
        return None
    if "Conv" in node.op_type:
        spread = source if node.op_type == "ConvTranspose" else output
        return math.prod(spread) * math.prod(weights[1:])
    transposed = key in _TRANSPOSABLE and node.attributes.get_int("transA", 0)
    inner = source[0] if transposed else source[-1] if source else 1
    return math.prod(output) * inner


def _dims(value: ir.Value | None) -> list[int] | None:
    """The dimensions, symbolic ones as 1; None where the rank is not known."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in value.shape]
