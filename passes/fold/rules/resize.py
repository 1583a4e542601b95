"""Resize: nearest neighbours select codes; interpolation is one matrix an axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array, constant_ints
from onnxfold.passes.fold.interpolation import COORDINATES, ResizedAxis
from onnxfold.passes.fold.lowering import Interpolation, Lowering, Refusal
from onnxfold.passes.fold.rules.movement import identity, move
from onnxfold.passes.fold.rules.operands import reads
from onnxfold.passes.fold.rules.refusals import not_quantized, touches_quantization
from onnxfold.passes.fold.rules.rounded import rounded_operand
from onnxfold.passes.fold.types import Quantized, TypeState

_CROP = "tf_crop_and_resize"
_SCALES, _SIZES = 2, 3


def resize(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Resize in any mode, where sizes are known or nothing is computed from them."""
    if not touches_quantization(node, types):
        return None
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return _interpolate(node, types)
    if _coordinates(node) == _CROP:
        return _crop(node, types)
    return move(node, types)


def _coordinates(node: ir.Node) -> str:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel")


def _crop(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Outside the region there is one number, whose code ``write_move`` fills in."""
    data = node.inputs[0]
    affine = types.activation(data)
    if data is None or affine is None or data in types.code_dtypes:
        return not_quantized(data, types)
    number = np.asarray(node.attributes.get_float("extrapolation_value", 0.0), np.float32)
    exact = affine.dequantize(affine.quantize(number)) == number
    if not exact and types.want(node.outputs[0]) is not affine:
        return Refusal(f"its extrapolation value {number} is not a code of '{data.name}'")
    return move(node, types)


def _interpolate(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    if node.attributes.get_int("antialias", 0):
        return Refusal("no integer form of antialiasing")
    if _coordinates(node) not in COORDINATES:
        return Refusal(f"no integer form of interpolation with {_coordinates(node)}")
    axes = _resized_axes(node)
    if axes is None:
        return Refusal("its sizes are not known", "infer shapes first, with fixed sizes")
    if not axes:
        return identity(node, types)
    found = rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand, want = found
    types.put(node.outputs[0], Quantized(want))
    return Interpolation(
        node=node,
        reads=reads(operand),
        covered=(node,),
        operand=operand,
        matrices=tuple((axis, _matrix(node, resized)) for axis, resized in axes),
        type=want,
    )


def _matrix(node: ir.Node, resized: ResizedAxis) -> Array:
    if node.attributes.get_string("mode", "") == "linear":
        return resized.linear()
    return resized.cubic(
        node.attributes.get_float("cubic_coeff_a", -0.75),
        exclude_outside=bool(node.attributes.get_int("exclude_outside", 0)),
    )


def _resized_axes(node: ir.Node) -> list[tuple[int, ResizedAxis]] | None:
    """The axes that change, and how; None where a size that matters is not known."""
    source, scales = node.inputs[0], _optional(node, _SCALES)
    if source is None or source.shape is None:
        return None
    factors, sizes = constant_array(scales), constant_ints(_optional(node, _SIZES))
    by_size = factors is None or factors.size == 0
    stretched = node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    if by_size and (not stretched or (scales is not None and factors is None)):
        return None
    rank = len(source.shape)
    listed = node.attributes.get_ints("axes", range(rank))
    found: list[tuple[int, ResizedAxis]] = []
    for place, axis in enumerate(each % rank for each in listed):
        old, new = source.shape[axis], _size(node.outputs[0], axis)
        new = new if sizes is None else sizes[place]
        scale = None if by_size or factors is None else float(factors[place])
        if scale == 1 or (by_size and isinstance(old, ir.SymbolicDim) and old == new):
            continue
        if scale is not None and isinstance(old, int):
            new = _scaled(old, scale)
        if not isinstance(old, int) or not isinstance(new, int):
            return None
        scale = new / old if scale is None else scale
        if new != old or scale != 1:
            found.append((axis, ResizedAxis(old, new, scale, _coordinates(node))))
    return found


def _scaled(size: int, scale: float) -> int:
    """The new size, computed in float32 as runtimes do."""
    product: Array = np.asarray(size, np.float32) * np.asarray(scale, np.float32)
    return int(product)


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _size(value: ir.Value, axis: int) -> int | ir.SymbolicDim | None:
    return None if value.shape is None else value.shape[axis]


RULES = {"Resize": resize}

ON_CODES = frozenset(RULES)
"""The ops that mean the same whatever the codes stand for."""
