"""Sizes of axes as far as they are known without running: numbers, or axes that they equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.op_kinds import is_dequantize, is_quantize
from onnxfold.passes.shapes import axes_of, reshape_target

_FAR = 200
"""How many nodes are followed."""

_SAME_SHAPE = frozenset(
    {"Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Elu", "Erf"}
    | {"Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization"}
    | {"IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish"}
    | {"Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax"}
    | {"Softplus", "Softsign", "Sqrt", "Tanh"}
)
"""Their first result has the shape of their first operand."""

_CONTRIB = "com.microsoft"
_SAME_SHAPE_CONTRIB = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})

_BATCHED = frozenset(
    {"AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
)
"""Their first axis is their first operand's."""

_BROADCASTING = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"}
    | {"Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where"}
)

_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"}
    | {"ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
)


@dataclass(frozen=True)
class Axis:
    """The size of an axis that is not known before the model runs."""

    value: ir.Value
    axis: int


Size: TypeAlias = int | Axis


def size_of(value: ir.Value, axis: int) -> Size:
    """The size of ``axis`` of ``value``: a number, or the first axis known to have that size.

    What a model declares for its outputs counts for nothing: ONNX Runtime does not enforce it.
    """
    return _Tracer().size(value, axis)


def spans(value: ir.Value, axis: int, size: Size) -> bool:
    """Whether ``axis`` of ``value`` has ``size``, or is broadcast from what has it.

    It is that long, then, wherever ``size`` is not 1. Axes of inputs with one name are as long as
    each other.
    """
    tracer, waiting, seen = _Tracer(), [Axis(value, axis)], set[Axis]()
    while waiting and len(seen) < _FAR:
        found = tracer.size(waiting[-1].value, waiting.pop().axis)
        if found == size or (_name_of(found) is not None and _name_of(found) == _name_of(size)):
            return True
        if isinstance(found, Axis) and found not in seen:
            seen.add(found)
            waiting += _operands(found)
    return False


def _name_of(size: Size) -> str | None:
    """What the model calls the size of an axis of an input."""
    if isinstance(size, int) or not size.value.is_graph_input() or size.value.shape is None:
        return None
    dim = size.value.shape[size.axis]
    return None if isinstance(dim, int) else dim.value


def _operands(found: Axis) -> list[Axis]:
    """The axes that are broadcast to one."""
    node, rank = found.value.producer(), len(found.value.shape or ())
    if node is None or node.domain or node.op_type not in _BROADCASTING:
        return []
    ranks = [(each, len(each.shape)) for each in node.inputs if each and each.shape is not None]
    return [Axis(each, found.axis - rank + own) for each, own in ranks if found.axis >= rank - own]


class _Tracer:
    """Follows axes to where their size comes from; each axis once, where branches meet again."""

    def __init__(self) -> None:
        self._found: dict[tuple[ir.Value, int], Size] = {}

    def size(self, value: ir.Value, axis: int, depth: int = 0) -> Size:
        """``size_of``, as far as nodes may be followed."""
        if (value, axis) not in self._found:
            self._found[value, axis] = self._size(value, axis, depth)
        return self._found[value, axis]

    def _size(self, value: ir.Value, axis: int, depth: int) -> Size:
        known = _known(value, axis)
        if known is not None or depth > _FAR:
            return Axis(value, axis) if known is None else known
        node = value.producer()
        if node is not None and node.op_type in _BROADCASTING and not node.domain:
            before = self._broadcast(node, value, axis, depth)
        else:
            before = _before(value, axis)
        if before is None:
            return Axis(value, axis)
        if isinstance(before, int):
            return before
        return self.size(before.value, before.axis, depth + 1)

    def _broadcast(self, node: ir.Node, value: ir.Value, axis: int, depth: int) -> Size | None:
        """The one operand whose axis is not 1, or the axis that all of them have."""
        rank = None if value.shape is None else len(value.shape)
        found: set[Size] = set()
        for operand in node.inputs:
            if rank is None or operand is None or operand.shape is None:
                return None
            at = axis - rank + len(operand.shape)
            if at >= 0 and operand.shape[at] != 1:
                found.add(self.size(operand, at, depth + 1))
        return found.pop() if len(found) == 1 else None


def _known(value: ir.Value, axis: int) -> int | None:
    if value.shape is None or value.is_graph_output():
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) and dim > 0 else None


def _before(value: ir.Value, axis: int) -> Size | None:
    """An axis of an operand of the same size."""
    node = value.producer()
    if node is None or not node.inputs or node.outputs[0] is not value:
        return None
    source = node.inputs[0]
    if is_quantize(node) or is_dequantize(node):
        return None if source is None else Axis(source, axis)
    if source is None or source.shape is None:
        return None
    if node.domain:
        return _before_contrib(node, source, value, axis)
    if node.op_type in _SAME_SHAPE or (node.op_type in _BATCHED and axis == 0):
        return Axis(source, axis)
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return _resqueezed(node, source, value, axis)
    if node.op_type in _REDUCTIONS:
        return _reduced(node, source, axis)
    if node.op_type == "Expand":
        return _expanded(node, source, value, axis)
    if node.op_type in ("Gemm", "MatMul"):
        return _product(node, source, value, axis)
    if node.op_type == "Reshape":
        return _reshaped(node, source, axis)
    if node.op_type == "Gather":
        return _gathered(node, source, axis)
    return _same_axis(node, source, axis)


def _before_contrib(node: ir.Node, source: ir.Value, value: ir.Value, axis: int) -> Size | None:
    """What a fold leaves in float between products."""
    if node.domain != _CONTRIB:
        return None
    if node.op_type in _SAME_SHAPE_CONTRIB:
        return Axis(source, axis)
    is_product = node.op_type == "MatMulIntegerToFloat"
    return _product(node, source, value, axis) if is_product else None


def _same_axis(node: ir.Node, source: ir.Value, axis: int) -> Size | None:
    """Operators that change some axes and leave others."""
    rank = len(source.shape or ())
    changed: tuple[int, ...] | None = None
    match node.op_type:
        case "Transpose":
            given = node.attributes.get("perm")
            if given is None or given.is_ref():
                return None
            return Axis(source, given.as_ints()[axis])
        case "Concat":
            changed = _ints(node, "axis")
        case "Slice" if len(node.inputs) > 3 and node.inputs[3] is not None:
            changed = axes_of(node, "axes", 3)
        case "Pad" if len(node.inputs) < 4:
            pads = axes_of(node, "pads", 1)
            if pads is not None and len(pads) == 2 * rank:
                changed = tuple(each for each in range(rank) if pads[each] or pads[each + rank])
        case _:
            pass
    if changed is None or axis in (each % rank for each in changed):
        return None
    return Axis(source, axis)


def _resqueezed(node: ir.Node, source: ir.Value, value: ir.Value, axis: int) -> Size | None:
    axes = axes_of(node, "axes", 1)
    wide = source if node.op_type == "Squeeze" else value
    if axes is None or wide.shape is None:
        return None
    rank = len(wide.shape)
    ones = {each % rank for each in axes}
    kept = [each for each in range(rank) if each not in ones]
    if node.op_type == "Squeeze":
        return Axis(source, kept[axis])
    return 1 if axis in ones else Axis(source, kept.index(axis))


def _reduced(node: ir.Node, source: ir.Value, axis: int) -> Size | None:
    axes, keeps = axes_of(node, "axes", 1), _ints(node, "keepdims") or (1,)
    if not axes or source.shape is None or ("keepdims" in node.attributes and _open(node)):
        return None
    rank = len(source.shape)
    gone = {each % rank for each in axes}
    if keeps[0]:
        return 1 if axis in gone else Axis(source, axis)
    return Axis(source, [each for each in range(rank) if each not in gone][axis])


def _expanded(node: ir.Node, source: ir.Value, value: ir.Value, axis: int) -> Size | None:
    """An axis that Expand leaves: it is expanded to 1, which broadcasts."""
    target, rank = constant_ints(node.inputs[1]), len(value.shape or ())
    if target is None or not rank or rank < len(target):
        return None
    at, inner = axis - rank + len(target), axis - rank + len(source.shape or ())
    return Axis(source, inner) if inner >= 0 and (at < 0 or target[at] == 1) else None


def _product(node: ir.Node, source: ir.Value, value: ir.Value, axis: int) -> Size | None:
    """Rows of the first operand of a product with one matrix."""
    other, rank = node.inputs[1], len(value.shape or ())
    if other is None or other.shape is None or len(other.shape) != 2 or axis >= rank - 1:
        return None
    if "transA" in node.attributes or rank != len(source.shape or ()):
        return None
    return Axis(source, axis)


def _reshaped(node: ir.Node, source: ir.Value, axis: int) -> Size | None:
    target = reshape_target(node)
    if target is None or source.shape is None:
        return None
    if target[axis] >= 0:
        return target[axis] or Axis(source, axis)
    # What is left over for -1 is an open axis where all others have their match.
    dims = [dim if isinstance(dim, int) else None for dim in source.shape]
    wanted = list(target)
    for at, dim in enumerate(target):
        if dim == 0:
            wanted[at], dims[at] = 1, 1
    if dims.count(None) != 1:
        return None
    left, right = 1, 1
    for dim in dims:
        left *= 1 if dim is None else dim
    for dim in wanted:
        right *= 1 if dim == -1 else dim
    return Axis(source, dims.index(None)) if left == right else None


def _gathered(node: ir.Node, source: ir.Value, axis: int) -> Size | None:
    """An axis of what is looked up in, or of the indices in the place of the axis looked up."""
    indices, given = node.inputs[1], _ints(node, "axis")
    if indices is None or indices.shape is None or ("axis" in node.attributes and given is None):
        return None
    at = (given or (0,))[0] % max(len(source.shape or ()), 1)
    inner = axis - at
    if 0 <= inner < len(indices.shape):
        return Axis(indices, inner)
    return Axis(source, axis if inner < 0 else axis - len(indices.shape) + 1)


def _open(node: ir.Node) -> bool:
    return any(attribute.is_ref() for attribute in node.attributes.values())


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else (attribute.as_int(),)
