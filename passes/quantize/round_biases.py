"""Rounds biases of quantized products to what an integer kernel can add to its sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.op_kinds import is_dequantize, is_quantize
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_LARGEST_PART = 0.1
_LARGEST_CODE = 2**31 - 1


@rule("round-bias", "Add")
def _round(node: ir.Node, rewriter: Rewriter) -> None:
    for index in (0, 1):
        bias, unit = constant_array(node.inputs[index]), _unit(node.inputs[1 - index])
        if bias is None or unit is None or bias.dtype != np.float32 or bias.ndim != 1:
            continue
        step = _step(node.outputs[0])
        if step is None or unit.shape not in ((), bias.shape) or unit.max() > _LARGEST_PART * step:
            return
        codes = np.rint(bias / unit)
        rounded: Array = (codes * unit).astype(np.float32)
        if np.abs(codes).max(initial=0.0) > _LARGEST_CODE or np.array_equal(rounded, bias):
            return
        constant = rewriter.constant(node, rounded, name=f"{node.outputs[0].name}_bias")
        rewriter.set_input(node, index, constant)
        return


def _unit(value: ir.Value | None) -> Array | None:
    """What one step of the int32 sums of a product is worth, in each of its columns."""
    product = None if value is None else value.producer()
    if value is None or product is None or (product.op_type, product.domain) != ("MatMul", ""):
        return None
    data, weights = (_scale(each) for each in product.inputs)
    if use_count(value) != 1 or value.is_graph_output() or data is None or weights is None:
        return None
    unit: Array = data * weights
    return unit if data.ndim == 0 and np.all(np.isfinite(unit)) and unit.min() > 0 else None


def _scale(value: ir.Value | None) -> Array | None:
    node = None if value is None else value.producer()
    if node is None or not is_dequantize(node):
        return None
    scale = constant_array(node.inputs[1])
    return None if scale is None or scale.ndim > 1 else scale.astype(np.float64)


def _step(value: ir.Value) -> float | None:
    """The step of the codes that ``value`` is rounded to and nothing else."""
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or len(readers) != 1 or not is_quantize(readers[0]):
        return None
    scale = constant_array(readers[0].inputs[1])
    return float(scale) if scale is not None and scale.ndim == 0 else None


@dataclass(frozen=True)
class RoundBiases(PatternPass):
    """Round the bias of a quantized MatMul to multiples of its scales, as int32 sums take it.

    By a hundredth of a code where the result is rounded to codes: too little to be seen there, but
    a deep network amplifies what it moves. Rounded here, before ``fold-qdq``, which keeps every
    code then.
    """

    name: ClassVar[str] = "round-biases"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_round,)
