"""Gives integer products of two computed tensors an int8 second operand, which VNNI multiplies.

Microseconds of processor time, onnxruntime 1.32 on x86-64 with AVX512-VNNI, one thread, of
QLinearMatMul on uint8 data and a second operand in uint8 and in int8:

    8 x [64, 64] [64, 64]      36 and 20     12 x [128, 32] [32, 128]   119 and 78
    1 x [64, 64] [64, 64]     4.6 and 2.9    12 x [128, 128] [128, 32]   95 and 48
    4 x [8, 16] [16, 8]       1.5 and 1.4    12 x [128, 128] [128, 128] 354 and 177

An operand of 8 x [64, 64] takes 4 more where it can be quantized again from the real numbers, and
8 where it has to come back from codes. int8 data are no choice: 160 instead of 36.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.types import DEQUANTIZE, QUANTIZE, is_quantize
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes

_PARAMETERS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("", "QLinearMatMul"): (3, 4, 5),
    ("com.microsoft", "MatMulIntegerToFloat"): (1, 3, 5),
}
"""Where products take their second operand, its scale and its zero point."""

_MOVES = frozenset({"Reshape", "Transpose"})
_OFFSET = 128
_ROWS = 64  # of the data, from which on the gain is twice the cost of an operand from codes
_PRODUCTS = 1 << 18  # from which on it is more than the calls of two more nodes


@dataclass(frozen=True)
class SignOperands(Pass):
    """Hold the second operands of large products of two computed tensors in int8, not in uint8.

    With VNNI (and on ARM) uint8 data times int8 is exact and twice as fast as times uint8. Without,
    x86 machines add pairs of such products in a saturating int16 (see ``reduce-range``), so this
    is left out there. To be run after ``fold-qdq``; an operand that is quantized from real numbers
    is quantized a second time, others come back from their codes. Sizes that are not known count
    as large.
    """

    name: ClassVar[str] = "sign-operands"
    contract: ClassVar[Contract] = Contract.INTEGER

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Rewrite each product where that pays."""
        signs = _Signs(rewriter)
        for node in tuple(all_nodes(model)):
            found = _second_operand(node)
            if found is not None and _pays(node, found.codes):
                signs.rewrite(node, found)


@dataclass(frozen=True, eq=False)
class _Operand:
    """The second operand of a product.

    Attributes:
        codes: Its uint8 codes.
        scale: Its scale.
        zero: Its zero point.
        zero_point: The number that is.
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value
    zero_point: int


@dataclass
class _Signs:
    """What is there by now, in each graph: operands with int8 codes, and zero points of those."""

    rewriter: Rewriter
    known: dict[tuple[object, ir.Value, int], ir.Value] = field(
        default_factory=dict[tuple[object, ir.Value, int], ir.Value]
    )
    zero_points: dict[tuple[object, int], ir.Value] = field(
        default_factory=dict[tuple[object, int], ir.Value]
    )

    def rewrite(self, node: ir.Node, operand: _Operand) -> None:
        """Let ``node`` read int8 codes."""
        codes, _, zero_point = _PARAMETERS[node.domain, node.op_type]
        with self.rewriter.step("sign-operand", node):
            signed = self._signed(operand.codes, operand, node)
            self.rewriter.set_input(node, codes, signed)
            self.rewriter.set_input(node, zero_point, self._zero_point(operand, node))

    def _signed(self, codes: ir.Value, operand: _Operand, node: ir.Node) -> ir.Value:
        key = (node.graph, codes, operand.zero_point)
        if key not in self.known:
            self.known[key] = self._written(codes, operand, node)
        return self.known[key]

    def _written(self, codes: ir.Value, operand: _Operand, node: ir.Node) -> ir.Value:
        source = _source(codes)
        name, shape = f"{codes.name}_int8", codes.shape
        dtype = ir.DataType.INT8
        if source is not None and source.op_type in _MOVES and _is_quantized(codes, operand):
            inner = source.inputs[0]
            assert inner is not None
            inputs = [self._signed(inner, operand, node), *source.inputs[1:]]
            return self.rewriter.insert(
                node,
                source.op_type,
                inputs,
                name=name,
                attributes=source.attributes,
                dtype=dtype,
                shape=shape,
            )
        if source is not None and _is_quantized(codes, operand):
            real = source.inputs[0]
        else:
            old = [codes, operand.scale, operand.zero]
            real = self.rewriter.insert(
                node, DEQUANTIZE, old, name=f"{name}_real", dtype=ir.DataType.FLOAT, shape=shape
            )
        new = [real, operand.scale, self._zero_point(operand, node)]
        return self.rewriter.insert(node, QUANTIZE, new, name=name, dtype=dtype, shape=shape)

    def _zero_point(self, operand: _Operand, node: ir.Node) -> ir.Value:
        key = (node.graph, operand.zero_point)
        if key not in self.zero_points:
            number = np.asarray(operand.zero_point - _OFFSET, np.int8)
            self.zero_points[key] = self.rewriter.constant(node, number, name="zero_point")
        return self.zero_points[key]


def _second_operand(node: ir.Node) -> _Operand | None:
    """The second operand, where it is computed, of uint8 codes with one scale, like the data."""
    places = _PARAMETERS.get((node.domain, node.op_type))
    if places is None or len(node.inputs) <= max(places):
        return None
    data, (codes, scale, zero) = node.inputs[0], (node.inputs[each] for each in places)
    if data is None or codes is None or scale is None or zero is None:
        return None
    if constant_array(codes) is not None:
        return None
    zero_point, factor = constant_array(zero), constant_array(scale)
    if zero_point is None or factor is None or zero_point.size != 1 or factor.size != 1:
        return None
    if data.dtype != ir.DataType.UINT8 or zero_point.dtype != np.uint8 or factor.ndim:
        return None
    return _Operand(codes, scale, zero, int(zero_point.reshape(())))


def _pays(node: ir.Node, operand: ir.Value) -> bool:
    """Whether the product is large enough; sizes that are not known are taken for large."""
    data = node.inputs[0]
    assert data is not None
    if data.shape is None or operand.shape is None or min(len(data.shape), len(operand.shape)) < 2:
        return False
    rows, columns = data.shape[-2], operand.shape[-1]
    if isinstance(rows, int) and rows < _ROWS:
        return False
    sizes = [*data.shape, columns]
    return math.prod(each if isinstance(each, int) else _ROWS for each in sizes) >= _PRODUCTS


def _source(codes: ir.Value) -> ir.Node | None:
    """What computes ``codes``, where that is an operator of ai.onnx."""
    node = codes.producer()
    return None if node is None or node.domain else node


def _is_quantized(codes: ir.Value, operand: _Operand) -> bool:
    """Whether ``codes``, through what only moves them, are quantized from real numbers."""
    node = _source(codes)
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = _source(node.inputs[0])
    return node is not None and is_quantize(node) and _has_type(node, operand)


def _has_type(node: ir.Node, operand: _Operand) -> bool:
    zero_point: Array | None = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    scale, wanted = constant_array(node.inputs[1]), constant_array(operand.scale)
    if zero_point is None or scale is None or wanted is None or zero_point.size != 1:
        return False
    return scale.size == 1 and scale == wanted and zero_point == operand.zero_point
