"""Operators that move elements, or choose among them: their axes follow the layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array, constant_ints
from onnxfold.passes.layouts.carry import (
    Carry,
    Handler,
    Known,
    data_operand,
    int_attribute,
    rank_of,
    remapped,
)
from onnxfold.passes.layouts.permutation import Permutation, with_added, without
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.shapes import axes_of


def _same_rank(
    node: ir.Node,
    known: Known,
    attributes: Mapping[str, AttributeValue | None] | None = None,
    constants: Mapping[int, Array] | None = None,
) -> Carry | None:
    """Operand 0 and all results in one layout."""
    operand = data_operand(node, 0, known.layout)
    if operand is None or (known.index and not known.is_output):
        return None
    outputs = (known.layout,) * len(node.outputs)
    return Carry(operand[0], outputs, attributes or {}, {**operand[1], **(constants or {})})


def _concat(node: ir.Node, known: Known) -> Carry | None:
    axis = int_attribute(node, "axis", 0)
    inputs: dict[int, Permutation] = {}
    constants: dict[int, Array] = {}
    for index in range(len(node.inputs)):
        operand = data_operand(node, index, known.layout)
        if operand is None:
            return None
        inputs |= operand[0]
        constants |= operand[1]
    if axis is None:
        return None
    moved = {"axis": remapped((axis,), known.layout)[0]}
    return Carry(inputs, (known.layout,), moved, constants)


def _split(node: ir.Node, known: Known) -> Carry | None:
    axis = int_attribute(node, "axis", 0)
    if axis is None:
        return None
    return _same_rank(node, known, {"axis": remapped((axis,), known.layout)[0]})


def _slice(node: ir.Node, known: Known) -> Carry | None:
    starts = node.inputs[1]
    given = node.inputs[3] if len(node.inputs) > 3 else None
    count = starts.shape[0] if starts is not None and starts.shape is not None else None
    axes = constant_ints(given) if given is not None else None
    if given is None and isinstance(count, int):
        axes = tuple(range(count))
    if axes is None or starts is None or starts.dtype is None:
        return None
    moved = np.array(remapped(axes, known.layout), dtype=starts.dtype.numpy())
    return _same_rank(node, known, {}, {3: moved})


def _pad(node: ir.Node, known: Known) -> Carry | None:
    given = node.inputs[3] if len(node.inputs) > 3 else None
    if given is not None:
        axes = constant_array(given)
        if axes is None:
            return None
        moved = remapped(tuple(axes.reshape(-1).tolist()), known.layout)
        return _same_rank(node, known, {}, {3: np.array(moved, dtype=axes.dtype)})
    pads = constant_array(node.inputs[1])
    if pads is None or pads.size != 2 * len(known.layout):
        return None
    both = pads.reshape(2, -1)[:, list(known.layout)].reshape(-1)
    return _same_rank(node, known, {}, {1: both})


def _gather(node: ir.Node, known: Known) -> Carry | None:
    axis, indices = int_attribute(node, "axis", 0), rank_of(node.inputs[1])
    rank = rank_of(node.inputs[0])
    if axis is None or rank is None or indices not in (0, 1):
        return None
    if indices == 1:
        return _same_rank(node, known, {"axis": remapped((axis,), known.layout)[0]})
    if known.is_output or known.index:
        return None
    outputs = (without(known.layout, {axis % rank}),)
    moved = {"axis": remapped((axis,), known.layout)[0]}
    return Carry({0: known.layout}, outputs, moved)


def _sized(index: int) -> Handler:
    """Expand and Tile: constant sizes, one for each axis, are operand ``index``."""

    def handler(node: ir.Node, known: Known) -> Carry | None:
        sizes = constant_array(node.inputs[index])
        if sizes is None or sizes.ndim != 1 or sizes.size > len(known.layout):
            return None
        missing = len(known.layout) - sizes.size
        full = np.concatenate([np.ones(missing, sizes.dtype), sizes])
        return _same_rank(node, known, {}, {index: full[list(known.layout)]})

    return handler


def _resize(node: ir.Node, known: Known) -> Carry | None:
    """Resize by copying the nearest element, by constant sizes or scales."""
    texts = {name: each for name, each in node.attributes.items() if name.endswith("mode")}
    modes = {name: None if each.is_ref() else each.as_string() for name, each in texts.items()}
    if modes.get("mode", "nearest") != "nearest" or "keep_aspect_ratio_policy" in node.attributes:
        return None
    if modes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    axes = node.attributes.get("axes")
    if axes is not None:
        moved = None if axes.is_ref() else remapped(tuple(axes.as_ints()), known.layout)
        return None if moved is None else _same_rank(node, known, {"axes": moved})
    constants: dict[int, Array] = {}
    for index, value in list(enumerate(node.inputs))[2:]:
        array = constant_array(value)
        if value is not None and (array is None or array.size not in (0, len(known.layout))):
            return None
        if array is not None and array.size:
            constants[index] = array[list(known.layout)]
    return _same_rank(node, known, {}, constants)


def _squeeze(node: ir.Node, known: Known) -> Carry | None:
    rank, axes = rank_of(node.inputs[0]), axes_of(node, "axes", 1)
    if rank is None or axes is None or (known.index and not known.is_output):
        return None
    gone = {axis % rank for axis in axes}
    layout = with_added(known.layout, gone) if known.is_output else known.layout
    if len(layout) != rank:
        return None
    return Carry({0: layout}, (without(layout, gone),), {}, {1: _stored(layout, gone)})


def _unsqueeze(node: ir.Node, known: Known) -> Carry | None:
    rank, axes = rank_of(node.outputs[0]), axes_of(node, "axes", 1)
    if rank is None or axes is None or (known.index and not known.is_output):
        return None
    new = {axis % rank for axis in axes}
    layout = known.layout if known.is_output else with_added(known.layout, new)
    operand = data_operand(node, 0, without(layout, new)) if len(layout) == rank else None
    if operand is None:
        return None
    return Carry(operand[0], (layout,), {}, {**operand[1], 1: _stored(layout, new)})


def _stored(layout: Permutation, axes: set[int]) -> Array:
    return np.array(sorted(layout.index(axis) for axis in axes), dtype=np.int64)


EXACT: dict[str, Handler] = {
    "Concat": _concat,
    "Expand": _sized(1),
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _sized(1),
    "Unsqueeze": _unsqueeze,
}
"""Bit-identical in every layout."""
