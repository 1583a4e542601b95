"""remove-identity: drop nodes that return their input, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array, constant_array, constant_ints, constant_scalar
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import axes_of, reshape_target
from onnxfold.passes.walk import use_count

_BEYOND_ANY_DIM = 2**31 - 1
_ADDRESSABLE = 2**47
"""More bytes than a process can address, and so than any tensor has."""


@rule("drop-identity", "Identity")
def drop_identity(node: ir.Node, rewriter: Rewriter) -> None:
    """Identity."""
    _pass_through(node, rewriter)


@rule("drop-dropout", "Dropout")
def drop_dropout(node: ir.Node, rewriter: Rewriter) -> None:
    """Dropout outside training."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None or constant_scalar(training) is False:
        _pass_through(node, rewriter)


@rule("drop-cast", "Cast")
def drop_cast(node: ir.Node, rewriter: Rewriter) -> None:
    """Cast to the type the value has."""
    target = node.attributes["to"]
    source = node.inputs[0]
    if source is None or target.is_ref() or source.dtype != target.as_int():
        return
    _pass_through(node, rewriter)


@rule("drop-single-operand", "Concat", "Max", "Mean", "Min", "Sum", "Split")
def drop_single_operand(node: ir.Node, rewriter: Rewriter) -> None:
    """Concat, Sum, ... of one value; Split into one part."""
    if len(node.outputs) == 1 and (node.op_type == "Split" or len(node.inputs) == 1):
        _pass_through(node, rewriter)


@rule("drop-transpose", "Transpose")
def drop_transpose(node: ir.Node, rewriter: Rewriter) -> None:
    """Transpose that keeps the order of the axes."""
    perm = node.attributes.get("perm")
    if perm is None or perm.is_ref():
        return
    axes = list(perm.as_ints())
    if axes == sorted(axes):
        _pass_through(node, rewriter)


@rule("drop-reshape", "Reshape", "Flatten")
def drop_reshape(node: ir.Node, rewriter: Rewriter) -> None:
    """Reshape or Flatten to the shape the value has."""
    dims = _dims(node.inputs[0])
    target = reshape_target(node)
    if dims is None or target is None or len(dims) != len(target):
        return
    differing = [new for old, new in zip(dims, target, strict=True) if new not in (0, old)]
    # One dimension left open is what the others leave: the dimension it was.
    if not differing or (differing == [-1] and 0 not in dims):
        _pass_through(node, rewriter)


@rule("drop-expand", "Expand")
def drop_expand(node: ir.Node, rewriter: Rewriter) -> None:
    """Expand to the shape the value has, or by ones only."""
    target = constant_ints(node.inputs[1])
    if target is not None and _broadcast_keeps(node.inputs[0], target):
        _pass_through(node, rewriter)


@rule("drop-tile", "Tile")
def drop_tile(node: ir.Node, rewriter: Rewriter) -> None:
    """Tile once along every axis."""
    repeats = constant_ints(node.inputs[1])
    if repeats is not None and all(count == 1 for count in repeats):
        _pass_through(node, rewriter)


@rule("drop-pad", "Pad")
def drop_pad(node: ir.Node, rewriter: Rewriter) -> None:
    """Pad by nothing."""
    pads = axes_of(node, "pads", 1)
    if pads is not None and not any(pads):
        _pass_through(node, rewriter)


@rule("drop-slice", "Slice")
def drop_slice(node: ir.Node, rewriter: Rewriter) -> None:
    """Slice that keeps everything."""
    starts, ends = axes_of(node, "starts", 1), axes_of(node, "ends", 2)
    if starts is None or ends is None or any(starts):
        return
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    if steps is not None and set(constant_ints(steps) or (0,)) != {1}:
        return
    # The axes matter only where an end is compared with a dimension.
    if all(end >= _BEYOND_ANY_DIM for end in ends) or _ends_cover(node, ends):
        _pass_through(node, rewriter)


@rule("drop-neutral-operand", "Mul", "Div", "Sub", "Add")
def drop_neutral_operand(node: ir.Node, rewriter: Rewriter) -> None:
    """Product with 1, quotient by 1, difference with +0, sum with -0 (+0 would change -0)."""
    for index in (1, 0) if node.op_type in ("Mul", "Add") else (1,):
        operand = constant_array(node.inputs[index])
        if operand is None or not _is_neutral(node.op_type, operand):
            continue
        if _broadcast_keeps(node.inputs[1 - index], operand.shape):
            _pass_through(node, rewriter, index=1 - index)
            return


@rule("drop-squeeze-pair", "Squeeze", "Unsqueeze")
def drop_squeeze_pair(node: ir.Node, rewriter: Rewriter) -> None:
    """Squeeze of Unsqueeze on the same axes, or the other way round."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    inverse = "Unsqueeze" if node.op_type == "Squeeze" else "Squeeze"
    if producer is None or producer.domain or producer.op_type != inverse:
        return
    axes, undone = axes_of(node, "axes", 1), axes_of(producer, "axes", 1)
    if axes is None or undone is None or set(axes) != set(undone):
        return
    _pass_through(node, rewriter, source=producer.inputs[0])


@dataclass(frozen=True)
class RemoveIdentity(PatternPass):
    """Remove nodes whose output is their input, in value, type and shape, -0 and NaN included."""

    name: ClassVar[str] = "remove-identity"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """One rule per kind of node."""
        return (
            drop_identity,
            drop_dropout,
            drop_cast,
            drop_single_operand,
            drop_transpose,
            drop_reshape,
            drop_expand,
            drop_tile,
            drop_pad,
            drop_slice,
            drop_neutral_operand,
            drop_squeeze_pair,
        )


def _pass_through(
    node: ir.Node, rewriter: Rewriter, *, index: int = 0, source: ir.Value | None = None
) -> None:
    """Let the readers of ``node`` read its input (or ``source``), if the model allows it."""
    source = node.inputs[index] if source is None else source
    output = node.outputs[0]
    if source is None or any(use_count(other) for other in node.outputs[1:]):
        return
    if any(other.is_graph_output() for other in node.outputs[1:]):
        return
    if output.is_graph_output() and not _can_be_output(source, node.graph):
        return
    rewriter.replace_node(node, [source, *[None] * (len(node.outputs) - 1)])


def _can_be_output(value: ir.Value, graph: ir.Graph | ir.Function | None) -> bool:
    """Whether ``value`` can take over an output of ``graph`` under the output's name."""
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def _dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def _broadcast_keeps(value: ir.Value | None, shape: Sequence[int]) -> bool:
    """Whether broadcasting ``value`` with ``shape`` leaves the shape of ``value``."""
    if len(shape) == 0:
        return True
    dims = _dims(value)
    if dims is None or len(dims) < len(shape):
        return False
    return all(
        size in (1, dim) for size, dim in zip(shape, dims[len(dims) - len(shape) :], strict=True)
    )


def _is_neutral(op_type: str, operand: Array) -> bool:
    if op_type in ("Mul", "Div"):
        return bool(np.all(operand == 1))
    if np.any(operand != 0):
        return False
    if operand.dtype.kind in "iu":
        return True
    return bool(np.all(np.signbit(operand) == (op_type == "Add")))


def _ends_cover(node: ir.Node, ends: Sequence[int]) -> bool:
    dims = _dims(node.inputs[0])
    if dims is None:
        return False
    given = node.attributes.get("axes") is not None or len(node.inputs) > 3
    axes = axes_of(node, "axes", 3) if given and not _absent(node, 3) else tuple(range(len(ends)))
    if axes is None:
        return False
    # A dimension beyond ``end`` would not fit into memory beside the dimensions that are known.
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    row = math.prod(dim for dim in dims if dim is not None) * (dtype.itemsize if dtype else 0)
    return all(
        end >= _BEYOND_ANY_DIM
        or (end * row > _ADDRESSABLE if (dim := dims[axis]) is None else end >= dim)
        for axis, end in zip(axes, ends, strict=True)
    )


def _absent(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is None
