"""Where weights alone can be quantized: products with constant weights, and lookups in tables."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array, constant_tensor
from onnxfold.passes.linear import FLOAT_TYPES

SMALLEST = 1024
"""Weights of fewer elements are left alone: they are no part of the size worth naming."""


@dataclass(frozen=True, eq=False)
class WeightSite:
    """One operator whose weights can be stored as codes.

    Attributes:
        node: MatMul, Gemm or Gather.
        source: The constant input that holds the weights.
        weights: float32 [K, N] as MatMul wants them, factors of Gemm taken in; [rows, columns] of
            a table.
        axis: Along which blocks lie: 0 for products, 1 for tables.
        bias: What a Gemm adds, its factor taken in; None for none. An array where it is to be a
            new constant, else the value itself.
    """

    node: ir.Node
    source: ir.Value
    weights: Array
    axis: int
    bias: ir.Value | Array | None = None

    @property
    def key(self) -> Hashable:
        """Equal for operators that can share codes."""
        alpha = self.node.attributes.get_float("alpha", 1.0)
        transposed = bool(self.node.attributes.get_int("transB", 0))
        return id(constant_tensor(self.source)), self.axis, alpha, transposed

    @property
    def data(self) -> ir.Value | None:
        """The data, or the indices of a lookup."""
        return self.node.inputs[1 if self.is_table else 0]

    @property
    def is_table(self) -> bool:
        """Whether rows are looked up."""
        return self.node.op_type == "Gather"


def find_site(node: ir.Node) -> WeightSite | str:
    """Describe ``node``, or say why its weights stay in float; empty where there is no question."""
    index = 0 if node.op_type == "Gather" else 1
    source = node.inputs[index] if len(node.inputs) > index else None
    tensor = constant_tensor(source)
    if node.domain or tensor is None or source is None or tensor.dtype not in FLOAT_TYPES:
        return ""
    if tensor.size < SMALLEST:
        return ""
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return "its attributes are parameters of a local function"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weights are {tensor.dtype.name.lower()}, not float32"
    if len(tensor.shape) != 2:
        return f"its weights have {len(tensor.shape)} axes, not 2"
    match node.op_type:
        case "Gather":
            return _table(node, source)
        case "Gemm":
            return _gemm(node, source)
        case "MatMul":
            array = constant_array(source)
            assert array is not None
            return WeightSite(node, source, array, 0)
        case _:
            return ""


def _table(node: ir.Node, source: ir.Value) -> WeightSite | str:
    array = constant_array(source)
    assert array is not None
    if node.attributes.get_int("axis", 0) % 2:
        return "columns are looked up, not rows"
    return WeightSite(node, source, array, 1)


def _gemm(node: ir.Node, source: ir.Value) -> WeightSite | str:
    if node.attributes.get_int("transA", 0):
        return "its data is transposed (transA)"
    array = constant_array(source)
    assert array is not None
    transposed = bool(node.attributes.get_int("transB", 0))
    weights: Array = np.ascontiguousarray(np.moveaxis(array, 1, 0)) if transposed else array
    alpha = np.float32(node.attributes.get_float("alpha", 1.0))
    beta = np.float32(node.attributes.get_float("beta", 1.0))
    bias: ir.Value | Array | None = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and beta != 1.0:
        constant = constant_array(bias)
        if constant is None:
            return "its bias has a factor (beta) and is computed at run time"
        bias = np.asarray(constant * beta, np.float32)
    scaled: Array = weights if alpha == 1.0 else np.asarray(weights * alpha, np.float32)
    return WeightSite(node, source, scaled, 0, bias)
