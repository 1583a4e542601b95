"""Functions of one quantized value, element by element, as tables of the result's codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.lowering import Function, Lowering, Operand, Refusal
from onnxfold.passes.fold.numerics import evaluate
from onnxfold.passes.fold.rules.operands import has_computed_codes, real_constant
from onnxfold.passes.fold.rules.refusals import not_quantized, not_rounded, touches_quantization
from onnxfold.passes.fold.types import Quantized, TypeState, is_wide
from onnxfold.passes.fold.unrounded import FunctionOf

ElementwiseRule = Callable[[ir.Node, TypeState], Lowering | Refusal | None]

MOST_NODES = 64
"""Longer chains of ops without rounding are not followed: the work stays linear."""

_MOST_SOURCES = 3
_MOST_CHANNELS = 1024  # 256 KiB of table


@dataclass(frozen=True, eq=False)
class _Constant:
    """A constant operand: one number, or one a channel of the other operands.

    Attributes:
        numbers: A scalar, or [channels, 1] to go with tables.
        axis: The channel axis; None for a scalar.
    """

    numbers: Array
    axis: int | None = None


def first_of(*rules: ElementwiseRule) -> ElementwiseRule:
    """The first of ``rules`` that lowers a node, for elementwise ops; else the first refusal.

    What the node is a function of is recorded before, for those that follow it.
    """

    def decide(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
        if not _concerns(node, types):
            return None
        _record(node, types)
        refusal: Refusal | None = None
        for rule in rules:
            decision = rule(node, types)
            if isinstance(decision, Lowering):
                return decision
            refusal = refusal or decision
        return refusal

    return decide


def if_function(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The node and what leads to it as one table, where they are a function of one value."""
    output = node.outputs[0]
    if output not in types.functions:
        return None
    want = types.want(output)
    if want is None:
        return not_rounded(output)
    tables = [each for each in types.functions[output] if types.activation(each.source)]
    for found in tables:
        # Behind a limit on codes not all of them occur: then the codes before it serve.
        lowering = _tabulated(found, found.nodes, want, types)
        if lowering is not None:
            types.put(output, Quantized(want))
            return lowering
    return _no_table(tables[-1], types) if tables else None


def _no_table(found: FunctionOf, types: TypeState) -> Refusal:
    """Why a function has no table."""
    affine = types.activation(found.source)
    if found.axis is not None and affine is not None and is_wide(affine):
        return Refusal(
            f"its table would have 65,536 entries for each channel of '{found.source.name}'",
            f"quantize '{found.source.name}' to 8 bits",
        )
    return not_a_number(found.source)


def quantized_function(node: ir.Node, want: AffineType, types: TypeState) -> Lowering | None:
    """A QuantizeLinear and what leads to it as one table, where its input has no one rounding."""
    for found in types.functions.get(node.inputs[0], ()) if node.inputs[0] is not None else ():
        if found.nodes[-1].graph is node.graph and types.activation(found.source):
            return _tabulated(found, (*found.nodes, node), want, types)
    return None


def _tabulated(
    found: FunctionOf, nodes: Sequence[ir.Node], want: AffineType, types: TypeState
) -> Function | None:
    """The table of ``found``, written in place of the last of ``nodes``.

    None with NaN in it, and where it would have one of 65,536 entries a channel.
    """
    affine = types.activation(found.source)
    assert affine is not None
    if is_wide(affine) and found.axis is not None:
        return None
    low, high = affine.limits
    numbers = results(found, affine.dequantize(np.arange(low, high + 1)), types)
    if bool(np.any(np.isnan(numbers))):
        return None
    return Function(
        node=nodes[-1],
        reads=(found.source,),
        covered=covered_nodes(nodes),
        operand=Operand(affine, found.source),
        table=want.quantize(numbers),
        numbers=numbers,
        axis=found.axis,
        type=want,
    )


def covered_nodes(nodes: Sequence[ir.Node]) -> tuple[ir.Node, ...]:
    """The last of ``nodes`` (producers first), and those that serve it alone."""
    covered = {nodes[-1]: None}
    for node in reversed(nodes[:-1]):
        if any(output.is_graph_output() for output in node.outputs):
            continue
        if all(use.node in covered for output in node.outputs for use in output.uses()):
            covered[node] = None
    return tuple(reversed(covered))


def _concerns(node: ir.Node, types: TypeState) -> bool:
    inputs = node.inputs
    if any(value in types.functions or value in types.sums for value in inputs if value):
        return True
    return touches_quantization(node, types)


def not_a_number(source: ir.Value) -> Refusal:
    """The refusal for a function that has no value somewhere."""
    return Refusal(
        f"it is not a number for some codes of '{source.name}'",
        "limit its argument to its domain with a Clip",
    )


def no_function(node: ir.Node, types: TypeState) -> Refusal:
    """Why ``node`` is no function of one value that has codes."""
    computed = [value for value in node.inputs if value and _constant(value, types) is None]
    for value in computed:
        if not has_computed_codes(value, types) and value not in types.functions:
            return not_quantized(value, types)
    if len(set(computed)) > 1:
        return Refusal(f"there is no integer form of {node.op_type} of several computed values")
    return Refusal("its constants differ along several axes, or its sizes are not known")


def _record(node: ir.Node, types: TypeState) -> None:
    """Record what the output of ``node`` is a function of, if anything."""
    constants: list[Array] = []
    computed: list[ir.Value] = []
    for value in node.inputs:
        array = _constant(value, types)
        if array is not None:
            constants.append(array)
        elif value is not None:
            computed.append(value)
    known = [_sources(value, node, types) for value in computed]
    if not all(known) or not known:
        return
    shape = _shape(computed)
    aligned = [_aligned(array, shape) for array in constants]
    found: list[FunctionOf] = []
    for source in known[0]:
        parts = [each[source] for each in known if source in each]
        if len(parts) == len(known):
            found.extend(_joined(source, parts, aligned, node))
    if found:
        types.functions[node.outputs[0]] = tuple(found[:_MOST_SOURCES])


def _sources(value: ir.Value, node: ir.Node, types: TypeState) -> dict[ir.Value, FunctionOf]:
    """What ``value`` is a function of, for a reader in the graph of ``node``; nearest first."""
    found: dict[ir.Value, FunctionOf] = {}
    if has_computed_codes(value, types) or types.accumulator(value) is not None:
        found[value] = FunctionOf(value)
    for each in types.functions.get(value, ()):
        if each.nodes[-1].graph is node.graph:
            found[each.source] = each
    return found


def _joined(
    source: ir.Value,
    parts: Sequence[FunctionOf],
    constants: Sequence[_Constant | None],
    node: ir.Node,
) -> list[FunctionOf]:
    """The function that ``node`` computes of its operands, functions of one source; or none."""
    channels: dict[int, int] = {}
    for part in parts:
        if part.axis is not None:
            channels[part.axis] = part.channels
    for constant in constants:
        if constant is None:
            return []
        if constant.axis is not None:
            channels[constant.axis] = constant.numbers.shape[0]
    nodes = dict.fromkeys(each for part in parts for each in part.nodes)
    if len(channels) > 1 or len(nodes) >= MOST_NODES:
        return []
    axis, count = next(iter(channels.items()), (None, 1))
    return [FunctionOf(source, (*nodes, node), axis, count)]


def results(found: FunctionOf, argument: Array, types: TypeState) -> Array:
    """The real numbers (float32) for some of the source: [n] as ``argument``, or [channels, n]."""
    numbers: dict[ir.Value, Array] = {found.source: argument}
    for node in found.nodes:
        computed = [value for value in node.inputs if value is not None and value in numbers]
        shape = _shape(computed)
        inputs = [_input(value, numbers, shape, types) for value in node.inputs]
        numbers[node.outputs[0]] = evaluate(node, inputs)
    result = numbers[found.nodes[-1].outputs[0]]
    shape = argument.shape if found.axis is None else (found.channels, *argument.shape)
    return np.broadcast_to(result, shape)


def _input(
    value: ir.Value | None,
    numbers: dict[ir.Value, Array],
    shape: Sequence[object] | None,
    types: TypeState,
) -> Array | None:
    if value is None:
        return None
    if value in numbers:
        return numbers[value]
    array = _constant(value, types)
    assert array is not None
    constant = _aligned(array, shape)
    assert constant is not None
    return constant.numbers


def _constant(value: ir.Value | None, types: TypeState) -> Array | None:
    """The constant behind ``value``: real, boolean (a condition) or integer (an exponent)."""
    real = real_constant(value, types)
    if real is not None:
        return real
    array = None if types.get(value) is not None else constant_array(value)
    return array if array is not None and array.dtype.kind in "iub" else None


def _shape(values: Sequence[ir.Value]) -> Sequence[object] | None:
    """The sizes that ``values``, all of one shape, have, where they are known."""
    for value in values:
        if value.shape is not None:
            return list(value.shape)
    return None


def _aligned(array: Array, shape: Sequence[object] | None) -> _Constant | None:
    """A constant next to a value of ``shape``; None where it differs along several axes.

    Nor may it broadcast the other operand, which it does where that is smaller.
    """
    if array.ndim == 0:
        return _Constant(array)
    if shape is None or array.ndim > len(shape) or array.size == 0:
        return None
    leading = len(shape) - array.ndim
    varying: list[int] = []
    for axis, size in enumerate(array.shape):
        if size == 1:
            continue
        if shape[leading + axis] != size:
            return None
        if not np.array_equal(array, np.broadcast_to(array.take([0], axis), array.shape)):
            varying.append(axis)
    if len(varying) > 1 or (varying and array.shape[varying[0]] > _MOST_CHANNELS):
        return None
    if not varying:
        return _Constant(array.reshape(-1)[0].reshape(()))
    along = np.moveaxis(array, varying[0], 0).reshape(array.shape[varying[0]], -1)[:, :1]
    return _Constant(along, leading + varying[0])
