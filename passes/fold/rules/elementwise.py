"""Elementwise ops on codes: what each is at its best, with a table for what is left."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_scalar
from onnxfold.passes.fold.lowering import Alias, Clamp, Lowering, Operand, Product, Refusal
from onnxfold.passes.fold.rules.curves import RULES as FUNCTIONS
from onnxfold.passes.fold.rules.curves import if_curve
from onnxfold.passes.fold.rules.functions import first_of, if_function
from onnxfold.passes.fold.rules.joined import extremum, select
from onnxfold.passes.fold.rules.operands import (
    exact_scalar,
    has_computed_codes,
    operand,
    reads,
    uniform_operand,
)
from onnxfold.passes.fold.rules.refusals import not_quantized, not_rounded
from onnxfold.passes.fold.rules.sums import no_sum, sum_of_two, weighted_sum
from onnxfold.passes.fold.types import Quantized, TypeState, is_wide


def rescale(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Multiplication or division by a positive constant: a change of scale."""
    sides = ((0, 1),) if node.op_type == "Div" else ((0, 1), (1, 0))
    for data, factor in sides:
        number = _scalar_factor(node.inputs[factor])
        if number is None:
            continue
        scale = 1.0 / number if node.op_type == "Div" else number
        lowering = _rescaled(node, node.inputs[data], scale, types)
        if lowering is not None:
            return lowering
    return None


def product(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Product of a and b, both quantized, or one a constant that 8 bits hold exactly."""
    operands: list[Operand] = []
    for value in node.inputs:
        found = operand(value, types) or uniform_operand(value)
        if found is None:
            return not_quantized(value, types)
        operands.append(found)
    output = node.outputs[0]
    want = types.want(output)
    if want is None:
        return not_rounded(output)
    if not reads(*operands):
        return Refusal("both operands are constant", "fold constants first")
    types.put(output, Quantized(want))
    first, second = operands
    return Product(
        node=node,
        reads=reads(first, second),
        covered=(node,),
        operands=(first, second),
        type=want,
    )


def division(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Why a division that is neither a change of scale nor a table stays float."""
    if not has_computed_codes(node.inputs[0], types):
        return not_quantized(node.inputs[0], types)
    return Refusal("no integer kernel divides by a computed value")


def relu(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """max(x, 0): the smallest code becomes the zero point."""
    affine, want = types.activation(node.inputs[0]), types.want(node.outputs[0])
    clamps = affine is not None and int(affine.zero_point) != affine.limits[0]
    narrow = affine is not None and not is_wide(affine)
    if clamps and narrow and want is not None and want is not affine:
        # One table, where limiting the codes would leave them to be requantized.
        return if_function(node, types)
    return _clamp(node, node.inputs[0], (0.0, None), types)


def clip(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Limits on the codes, where the bounds are codes or the result is rounded anyway."""
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if len(node.inputs) > index else None
        attribute = node.attributes.get(name)
        bound = constant_scalar(value)
        if value is not None and bound is None:
            return Refusal(f"its bound '{value.name}' is computed at run time")
        bounds.append(attribute.as_float() if attribute is not None else bound)
    return _clamp(node, node.inputs[0], (bounds[0], bounds[1]), types)


def one_bound(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Max or Min of one value and scalar constants: a limit on the codes."""
    bounds: list[float] = []
    data: list[ir.Value] = []
    for value in node.inputs:
        bound = exact_scalar(value) if value is not None and _is_scalar(value) else None
        if bound is not None:
            bounds.append(bound)
        elif value is not None:
            data.append(value)
    if len(data) != 1 or not bounds or not has_computed_codes(data[0], types):
        return None
    limits = (max(bounds), None) if node.op_type == "Max" else (None, min(bounds))
    return _clamp(node, data[0], limits, types)


def _is_scalar(value: ir.Value) -> bool:
    """Whether ``value`` has rank 0, so that it cannot broadcast the other operand."""
    return value.shape is not None and len(value.shape) == 0


def _scalar_factor(value: ir.Value | None) -> float | None:
    """The positive scalar constant behind ``value``, which cannot broadcast the other operand."""
    number = exact_scalar(value)
    if number is None or number <= 0 or value is None:
        return None
    return number if _is_scalar(value) else None


def _rescaled(
    node: ir.Node, data: ir.Value | None, factor: float, types: TypeState
) -> Lowering | None:
    known = types.activation(data)
    if known is None or data is None or not np.isfinite(np.float32(known.scale * factor)):
        return None
    scaled = types.rescaled(known, factor)
    if not float(scaled.scale) > float(np.finfo(np.float32).tiny):
        return None
    types.put(node.outputs[0], Quantized(scaled))
    return Alias(node=node, reads=(data,), covered=(node,))


def _clamp(
    node: ir.Node,
    data: ir.Value | None,
    bounds: tuple[float | None, float | None],
    types: TypeState,
) -> Lowering | Refusal | None:
    affine = types.activation(data)
    if data is None or affine is None:
        return not_quantized(data, types)
    rounded = types.want(node.outputs[0]) is affine
    codes: list[int] = []
    for bound, limit in zip(bounds, affine.limits, strict=True):
        code = _code_of_bound(affine, bound, limit, rounded=rounded)
        if code is None:
            return Refusal(
                f"its bound {bound} falls between two codes of '{data.name}'",
                f"quantize its output like '{data.name}'",
            )
        codes.append(code)
    types.put(node.outputs[0], Quantized(affine))
    smallest, largest = types.bounds.get(data, affine.limits)
    clipped = np.clip([smallest, largest], codes[0], codes[1]).tolist()
    types.bounds[node.outputs[0]] = clipped[0], clipped[1]
    if clipped == [smallest, largest]:
        return Alias(node=node, reads=(data,), covered=(node,))
    return Clamp(
        node=node, reads=(data,), covered=(node,), low=clipped[0], high=clipped[1], type=affine
    )


def _code_of_bound(
    affine: AffineType, bound: float | None, limit: int, *, rounded: bool
) -> int | None:
    """The code that stands for ``bound``; ``limit`` where the range implies it; None if inexact."""
    if bound is None:
        return limit
    real: Array = np.asarray(bound, np.float32)
    code = affine.quantize(real)
    exact = bool(affine.dequantize(code) == real)
    extreme = affine.dequantize(np.asarray(limit, np.int64))
    implied = bool(real <= extreme if limit == affine.limits[0] else real >= extreme)
    if not (exact or implied or rounded):
        return None
    return limit if implied else int(code)


RULES = {
    **FUNCTIONS,
    "Add": first_of(sum_of_two, if_function, weighted_sum, if_curve),
    "Clip": first_of(clip, if_function, if_curve),
    "Div": first_of(rescale, if_function, weighted_sum, if_curve, division),
    "Max": first_of(one_bound, if_function, if_curve, extremum),
    "Mean": first_of(if_function, weighted_sum, no_sum),
    "Min": first_of(one_bound, if_function, if_curve, extremum),
    "Mul": first_of(rescale, product, if_function, weighted_sum, if_curve),
    "Neg": first_of(if_function, weighted_sum, no_sum),
    "Relu": first_of(relu, if_function, if_curve),
    "Sub": first_of(sum_of_two, if_function, weighted_sum, if_curve),
    "Sum": first_of(if_function, weighted_sum, no_sum),
    "Where": first_of(if_function, if_curve, select),
}
