"""Axes and target shapes as nodes give them: attributes in older opsets, inputs in newer ones."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints


def axes_of(node: ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    """Integers given as the attribute ``name`` or as the constant input ``index``.

    None where they are absent or not known.
    """
    attribute = node.attributes.get(name)
    if attribute is not None:
        return None if attribute.is_ref() else tuple(attribute.as_ints())
    return constant_ints(node.inputs[index]) if index < len(node.inputs) else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of ``value`` where every dimension is a known number."""
    if value is None or value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    return tuple(dims) if len(dims) == len(value.shape) else None


def reshape_target(node: ir.Node) -> tuple[int, ...] | None:
    """What a Reshape or Flatten node makes, in the terms of Reshape: 0 copies, -1 is what is left.

    None where it is not known, or holds zeros that mean empty dimensions.
    """
    if node.op_type == "Flatten":
        return _flatten_target(node)
    target = constant_ints(node.inputs[1])
    allow_zero = node.attributes.get("allowzero")
    if target is None or (allow_zero is not None and allow_zero.is_ref()):
        return None
    literal_zeros = allow_zero is not None and allow_zero.as_int() != 0
    return None if literal_zeros and 0 in target else target


def _flatten_target(node: ir.Node) -> tuple[int, ...] | None:
    source = node.inputs[0]
    axis_attribute = node.attributes.get("axis")
    if source is None or source.shape is None:
        return None
    if axis_attribute is not None and axis_attribute.is_ref():
        return None
    axis = 1 if axis_attribute is None else axis_attribute.as_int()
    axis = axis + len(source.shape) if axis < 0 else axis
    parts = [_product(source.shape[:axis]), _product(source.shape[axis:])]
    if 0 in parts or parts.count(-1) > 1:
        # Axis 1 keeps the first dimension, whatever it is.
        return (0, parts[1]) if axis == 1 and 0 not in parts else None
    return tuple(parts)


def _product(dims: tuple[int | ir.SymbolicDim, ...]) -> int:
    known = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(known) if len(known) == len(dims) else -1
