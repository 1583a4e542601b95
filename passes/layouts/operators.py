"""Which operators carry a layout, and how."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.layouts import elementwise, movement, products, reductions, reshapes
from onnxfold.passes.layouts.carry import Carry, Handler, Known, rank_of
from onnxfold.passes.op_kinds import is_dequantize, is_quantize

OLDEST_OPSET = 13
"""The first opset in which sizes and axes are operands."""

EXACT: dict[str, Handler] = {
    **elementwise.EXACT,
    **movement.EXACT,
    **reductions.EXACT,
    **reshapes.EXACT,
}
"""Operators that compute the same bits in every layout."""

ROUNDING: dict[str, Handler] = {
    **EXACT,
    **elementwise.ROUNDING,
    **reductions.ROUNDING,
    **products.ROUNDING_WITH_WEIGHTS,
}
"""And those whose last bit depends on it."""


def carry(node: ir.Node, known: Known, handlers: dict[str, Handler]) -> Carry | None:
    """``node`` on transposed tensors, from the layout of one of them; None where it cannot."""
    if node.domain and not (is_quantize(node) or is_dequantize(node)):
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    handler = handlers.get(node.op_type)
    change = None if handler is None else handler(node, known)
    # Who reads a tensor in which layout can be told where the number of its axes is known only.
    return change if change is not None and _ranks_are_known(node, change) else None


def _ranks_are_known(node: ir.Node, change: Carry) -> bool:
    made = zip(node.outputs, change.outputs, strict=True)
    read = ((node.inputs[index], layout) for index, layout in change.inputs.items())
    return all(rank_of(value) == len(layout) for value, layout in (*made, *read))
