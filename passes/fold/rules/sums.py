"""Sums of quantized values: Add, Sub, Sum, Mean, and scaling by constants among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_scalar
from onnxfold.passes.fold.lowering import Lowering, Operand, Refusal, Sum
from onnxfold.passes.fold.rules.functions import MOST_NODES, covered_nodes
from onnxfold.passes.fold.rules.operands import (
    has_computed_codes,
    operand,
    reads,
    real_constant,
    uniform_operand,
)
from onnxfold.passes.fold.rules.refusals import not_quantized, not_rounded
from onnxfold.passes.fold.types import Quantized, TypeState
from onnxfold.passes.fold.unrounded import SumOf


def sum_of_two(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Sum or difference of a and b, both quantized, or one a constant that 8 bits hold exactly."""
    operands: list[Operand] = []
    signs = (1.0, -1.0 if node.op_type == "Sub" else 1.0)
    coefficients: list[float] = []
    for value, sign in zip(node.inputs, signs, strict=True):
        computed = operand(value, types)
        found = computed or uniform_operand(value, sign)
        if found is None:
            return not_quantized(value, types)
        operands.append(found)
        coefficients.append(1.0 if computed is None else sign)
    output = node.outputs[0]
    want = types.want(output)
    if want is None:
        return not_rounded(output)
    if not reads(*operands):
        return Refusal("both operands are constant", "fold constants first")
    types.put(output, Quantized(want))
    return Sum(
        node=node,
        reads=reads(*operands),
        covered=(node,),
        operands=tuple(operands),
        coefficients=tuple(coefficients),
        type=want,
    )


def no_sum(node: ir.Node, types: TypeState) -> Refusal:
    """Why a sum that nothing else takes stays float."""
    for value in node.inputs:
        if not has_computed_codes(value, types) and real_constant(value, types) is None:
            return not_quantized(value, types)
    return not_rounded(node.outputs[0])


def weighted_sum(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The node and the additions and scalings that lead to it, as one sum that is rounded once."""
    output = node.outputs[0]
    found = _combined(node, types)
    if found is None:
        return None
    types.sums[output] = found
    want = types.want(output)
    if want is None:
        return not_rounded(output)
    types.put(output, Quantized(want))
    return _rounded(found, found.nodes, want, types)


def quantized_sum(node: ir.Node, want: AffineType, types: TypeState) -> Lowering | None:
    """A QuantizeLinear and what leads to it as one sum, where its input has no one rounding."""
    found = None if node.inputs[0] is None else types.sums.get(node.inputs[0])
    if found is None or found.nodes[-1].graph is not node.graph:
        return None
    return _rounded(found, (*found.nodes, node), want, types)


def _rounded(
    found: SumOf, nodes: Sequence[ir.Node], want: AffineType, types: TypeState
) -> Lowering:
    operands = [operand(value, types) or _accumulated(value, types) for value in found.terms]
    return Sum(
        node=nodes[-1],
        reads=tuple(found.terms),
        covered=covered_nodes(nodes),
        operands=tuple(each for each in operands if each is not None),
        coefficients=tuple(found.terms.values()),
        constant=found.constant,
        type=want,
    )


def _combined(node: ir.Node, types: TypeState) -> SumOf | None:
    """The sum that ``node`` computes; None where it is none of values that have codes."""
    weighted = _weights(node)
    if weighted is None:
        return None
    terms: dict[ir.Value, float] = {}
    constant: Array | None = None
    nodes: dict[ir.Node, None] = {}
    for value, weight in weighted:
        part = _part(value, node, types)
        if part is None:
            return None
        for term, coefficient in part.terms.items():
            terms[term] = terms.get(term, 0.0) + weight * coefficient
        if part.constant is not None:
            scaled = weight * part.constant
            constant = scaled if constant is None else constant + scaled
        nodes.update(dict.fromkeys(part.nodes))
    if not terms or len(nodes) >= MOST_NODES or not _all_finite(terms, constant):
        return None
    return SumOf(terms, constant, (*nodes, node))


def _weights(node: ir.Node) -> list[tuple[ir.Value, float]] | None:
    """The operands that ``node`` adds, and the factor of each; None where it does not add."""
    inputs = [value for value in node.inputs if value is not None]
    match node.op_type:
        case "Add" | "Sum":
            return [(value, 1.0) for value in inputs]
        case "Sub":
            return list(zip(inputs, (1.0, -1.0), strict=True))
        case "Mean":
            return [(value, 1.0 / len(inputs)) for value in inputs]
        case "Neg":
            return [(inputs[0], -1.0)]
        case "Mul":
            return next(_scaled(inputs), None)
        case "Div":
            divisor = _scalar(inputs[1])
            return [(inputs[0], 1.0 / divisor)] if divisor else None
        case _:
            return None


def _scaled(factors: list[ir.Value]) -> Iterator[list[tuple[ir.Value, float]]]:
    for data, factor in (factors, reversed(factors)):
        number = _scalar(factor)
        if number is not None:
            yield [(data, number)]


def _scalar(value: ir.Value) -> float | None:
    """A constant of rank 0, which broadcasts nothing."""
    number = constant_scalar(value)
    return (
        float(number)
        if number is not None and value.shape is not None and not len(value.shape)
        else None
    )


def _part(value: ir.Value, node: ir.Node, types: TypeState) -> SumOf | None:
    """``value`` as a sum, for a reader in the graph of ``node``."""
    if has_computed_codes(value, types) or types.accumulator(value) is not None:
        return SumOf({value: 1.0}, types.residuals.get(value))
    found = types.sums.get(value)
    if found is not None:
        return found if found.nodes[-1].graph is node.graph else None
    constant = real_constant(value, types)
    return None if constant is None else SumOf({}, constant.astype(np.float64))


def _accumulated(value: ir.Value, types: TypeState) -> Operand | None:
    """The int32 accumulator of a product that nothing has rounded yet."""
    unit = types.accumulator(value)
    return None if unit is None else Operand(unit, value)


def _all_finite(terms: dict[ir.Value, float], constant: Array | None) -> bool:
    """Whether every term counts, and nothing is infinite."""
    if not all(each and np.isfinite(each) for each in terms.values()):
        return False
    return constant is None or bool(np.all(np.isfinite(constant)))
