"""Tensors seen through the transposes behind them: who reads what in which order of axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.layouts.carry import rank_of
from onnxfold.passes.layouts.permutation import Permutation, compose, identity, permutation_of

_OVERHEAD = 1024
"""What one more node costs, in bytes that a transpose moves."""
_UNKNOWN_DIM = 32
"""What an open dimension is taken for; an open batch stands in all costs alike."""
_ITEM = 4
"""Bytes of an element of a type that is not known."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One use of a tensor, behind transposes or not.

    Attributes:
        value: What is read: the root, or a transpose of it.
        turned: What transposes on the way make of the root: ``transpose(root, turned)``.
        node: Who reads it; None for the graph, whose output it is.
        index: Which operand of the reader it is.
    """

    value: ir.Value
    turned: Permutation
    node: ir.Node | None
    index: int


def root_of(value: ir.Value) -> tuple[ir.Value, Permutation] | None:
    """What ``value`` is a transpose of, and how; itself where no Transpose makes it."""
    rank = rank_of(value)
    if rank is None:
        return None
    turned = identity(rank)
    while (source := _source(value.producer())) is not None:
        node = value.producer()
        permutation = permutation_of(node) if node is not None else None
        if permutation is None:
            break
        value, turned = source, compose(permutation, turned)
    return value, turned


def readings(root: ir.Value) -> Iterator[Reading]:
    """Everything that reads ``root`` or transposes of it."""
    rank = rank_of(root)
    return iter(()) if rank is None else _readings(root, identity(rank))


def is_constant(value: ir.Value) -> bool:
    """Whether it can be transposed at compile time."""
    return constant_tensor(value) is not None


def transpose_of(node: ir.Node | None) -> bool:
    """Whether ``node`` is a Transpose that is looked through."""
    return node is not None and _source(node) is not None and permutation_of(node) is not None


def cost_of(root: ir.Value) -> int:
    """What a Transpose of ``root`` costs: the bytes that it moves."""
    if root.shape is None:
        return _OVERHEAD
    elements = math.prod(dim if isinstance(dim, int) else _UNKNOWN_DIM for dim in root.shape)
    itemsize = _ITEM if root.dtype is None else root.dtype.itemsize
    return _OVERHEAD + math.ceil(elements * itemsize)


def only_moves_ones(root: ir.Value, stored: Permutation, needed: Permutation) -> bool:
    """Whether the axes of more than one element are in the same order: a Reshape will do."""
    if root.shape is None:
        return False
    dims = list(root.shape)
    if sum(not isinstance(dim, int) for dim in dims) > 1 or 0 in dims:
        return False
    return [a for a in stored if dims[a] != 1] == [a for a in needed if dims[a] != 1]


def _readings(value: ir.Value, turned: Permutation) -> Iterator[Reading]:
    if value.is_graph_output():
        yield Reading(value, turned, None, 0)
    for use in value.uses():
        permutation = permutation_of(use.node) if transpose_of(use.node) else None
        if permutation is None:
            yield Reading(value, turned, use.node, use.idx)
        else:
            yield from _readings(use.node.outputs[0], compose(turned, permutation))


def _source(node: ir.Node | None) -> ir.Value | None:
    """What ``node`` transposes, if it is a Transpose of what its own graph holds."""
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    source = node.inputs[0]
    return source if source is not None and source.graph is node.graph else None
