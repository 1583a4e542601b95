"""Scales what a QuickGelu computes on, so that it has no number of its own to multiply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_DEFAULT = 1.702
_SCALE, _BIAS = 3, 6
"""Where a MatMulIntegerToFloat takes the scale of its weights, and the bias."""


@rule("scale-quick-gelu", "com.microsoft::QuickGelu")
def _scale(node: ir.Node, rewriter: Rewriter) -> None:
    slope = node.attributes.get_float("alpha", _DEFAULT)
    product = None if node.inputs[0] is None else node.inputs[0].producer()
    if slope <= 0.0 or slope == 1.0 or product is None or product.graph is not node.graph:
        return
    if product.op_type != "MatMulIntegerToFloat" or not _is_read_once(product.outputs[0]):
        return
    readers = list(_rounding(node.outputs[0]))
    factors = [*_constants(product, (_SCALE, _BIAS)), *readers]
    if not readers or any(array is None for _, _, array in factors):
        return
    for reader, place, array in factors:
        if array is not None:
            scaled = np.asarray(array * np.float32(slope), np.float32)
            rewriter.set_input(reader, place, rewriter.constant(reader, scaled, name="scaled"))
    rewriter.set_attribute(node, "alpha", 1.0)


def _constants(
    node: ir.Node, places: tuple[int, ...]
) -> Iterator[tuple[ir.Node, int, Array | None]]:
    """Operands that are given, as float32; None for one that is something else."""
    for place in places:
        if place < len(node.inputs) and node.inputs[place] is not None:
            array = constant_array(node.inputs[place])
            known = array is not None and array.dtype == np.float32
            yield node, place, array if known else None


def _rounding(value: ir.Value) -> Iterator[tuple[ir.Node, int, Array | None]]:
    """The scales of all that reads ``value``; None where that is no QuantizeLinear."""
    if value.is_graph_output():
        yield from ((use.node, 1, None) for use in value.uses())
        return
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear" and not use.node.domain and not use.idx:
            yield from _constants(use.node, (1,))
        else:
            yield use.node, 1, None


def _is_read_once(value: ir.Value) -> bool:
    return use_count(value) == 1 and not value.is_graph_output()


@dataclass(frozen=True)
class ScaleQuickGelu(PatternPass):
    """Multiply a QuickGelu's slope into the product before it, and into the rounding behind it.

    a (x sigmoid(a x)) is the same function of a x with slope 1, for which ONNX Runtime's kernel
    saves one of three passes over the data. Scale and bias of the product are multiplied by a, and
    the step of the codes that the result is rounded to: 68 us instead of 96, for 96 rows of 1,536
    (1.32, x86-64 with AVX-512, one thread). A code on the edge may become its neighbour.
    """

    name: ClassVar[str] = "scale-quick-gelu"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_scale,)
