"""Data movement on codes, and limits on them, written the same way for all integer targets.

Where the oldest supported ONNX Runtime has no 8-bit kernel of an op (``_WIDENED``), or none of 16
bits (``_NARROW_ONLY``), it is done on wider integers, which hold all codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.lowering import Clamp, Move, Scatter
from onnxfold.passes.fold.targets.block_moves import space_to_depth, wide_depth_to_space
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.fixed_point import IntegerOps
from onnxfold.passes.fold.targets.wide_max_pool import write_wide_max_pool
from onnxfold.passes.fold.types import is_wide
from onnxfold.passes.literals import AttributeValue

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64
_WIDENED = {"CenterCropPad": _INT32, "TopK": _INT32, "Trilu": _INT64}
_NARROW_ONLY = frozenset({"ArgMax", "ArgMin", "Pad", "ReduceMax", "ReduceMin", "Resize"})
_FILLS_WITH_ZERO = frozenset({"CenterCropPad", "Trilu"})
_AXES_ARE_INPUTS = 18
"""Since this opset ReduceMax takes its axes as an input."""
_RESIZE_HAS_AXES = 18
_CROP = "tf_crop_and_resize"
_BLOCKS = {"DepthToSpace": wide_depth_to_space, "SpaceToDepth": space_to_depth}


def write_move(move: Move, build: Builder) -> Sequence[ir.Value]:
    """The op itself, on codes.

    Returns:
        For each output its codes, or the output itself where it is no code (an index).
    """
    node = move.node
    known = build.types.get(move.reads[0] if move.reads else node.outputs[0])
    assert known is not None
    inputs: list[ir.Value | None] = list(node.inputs)
    for position in move.positions:
        value = inputs[position]
        assert value is not None
        inputs[position] = build.codes_of(value)
    dtype = _kernel_type(node, known.type)
    for position, array in move.constants.items():
        inputs += [None] * (position + 1 - len(inputs))
        fill = array.astype(dtype.numpy())
        inputs[position] = build.constant(fill, f"{node.outputs[0].name}_fill")
    if node.op_type == "GlobalMaxPool":
        return [_reduce_max(node, inputs[0], known.type, build)]
    if node.op_type == "MaxPool" and is_wide(known.type):
        return [write_wide_max_pool(node, inputs[0], known.type, build)]
    if node.op_type in _BLOCKS and (
        found := _BLOCKS[node.op_type](node, inputs[0], known.type, build)
    ):
        return [found]
    attributes = _attributes(node, known.type)
    if node.op_type == "Resize" and (sizes := _sizes(node, inputs[0], build)):
        inputs, attributes = [inputs[0], None, None, sizes[0]], sizes[1]
    if dtype != known.type.dtype:
        return _widened(move, inputs, attributes, known.type, build)
    return _insert(move, inputs, dtype, build, attributes)


def write_scatter(scatter: Scatter, codes: Sequence[ir.Value], build: Builder) -> ir.Value:
    """ScatterElements or ScatterND of data and updates that are codes of one type."""
    node, (data, updates) = scatter.node, codes
    inputs = [data, node.inputs[1], updates]
    dtype, attributes = scatter.type.dtype, node.attributes
    return build.insert(node.op_type, inputs, node.outputs[0], dtype, attributes=attributes)


def write_clamp(clamp: Clamp, build: Builder) -> ir.Value:
    """Limits on codes as a Clip of codes."""
    output, codes = clamp.node.outputs[0], build.codes_of(clamp.reads[0])
    dtype = _INT32 if is_wide(clamp.type) else clamp.type.dtype
    write = IntegerOps(build, output, output.shape)
    bounds = [
        build.constant(np.array(bound, dtype.numpy()), "code_limit")
        for bound in (clamp.low, clamp.high)
    ]
    clipped = write.op("Clip", [write.cast(codes, dtype), *bounds], dtype)
    return write.cast(clipped, clamp.type.dtype)


def _insert(
    move: Move,
    inputs: Sequence[ir.Value | None],
    dtype: ir.DataType,
    build: Builder,
    attributes: Mapping[str, AttributeValue | ir.Attr],
) -> Sequence[ir.Value]:
    """The op on data of ``dtype``."""
    node = move.node
    inserted = build.rewriter.insert_node(
        build.anchor,
        node.op_type,
        inputs,
        name=f"{node.outputs[0].name}_codes",
        attributes=attributes,
        outputs=len(node.outputs),
    )
    for old, new in zip(node.outputs, inserted.outputs, strict=True):
        own = dtype if build.types.get(old) is not None else old.dtype
        if own is not None:
            build.rewriter.set_type(new, own, old.shape)
    return inserted.outputs


def _attributes(node: ir.Node, affine: AffineType) -> Mapping[str, AttributeValue | ir.Attr]:
    """Its attributes; the real number among them, what a cropping Resize fills with, as a code."""
    if node.attributes.get_string("coordinate_transformation_mode", "") != _CROP:
        return node.attributes
    real = np.asarray(node.attributes.get_float("extrapolation_value", 0.0), np.float32)
    return {**node.attributes, "extrapolation_value": float(affine.quantize(real))}


def _sizes(
    node: ir.Node, codes: ir.Value | None, build: Builder
) -> tuple[ir.Value, Mapping[str, AttributeValue | ir.Attr]] | None:
    """The sizes and attributes of a Resize by scales, which are real numbers.

    None where the scales mean something else, or a size that matters is not known.
    """
    attributes, shape = node.attributes, None if codes is None else codes.shape
    scales = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    others = {"axes", "keep_aspect_ratio_policy"} & {*attributes}
    mode = attributes.get_string("coordinate_transformation_mode", "")
    if scales is None or not scales.size or shape is None or others or mode == _CROP:
        return None
    axes = [axis for axis in range(scales.size) if scales[axis] != 1]
    has_axes = build.rewriter.opset(node) >= _RESIZE_HAS_AXES and bool(axes)
    axes = axes if has_axes else list(range(scales.size))
    sizes: list[int] = []
    for axis in axes:
        old = shape[axis]
        new = float(old) * float(scales[axis]) if isinstance(old, int) else 0.5
        if not new.is_integer():
            return None
        sizes.append(int(new))
    constant = build.constant(np.array(sizes, np.int64), "sizes")
    return constant, {**attributes, "axes": axes} if has_axes else attributes


def _kernel_type(node: ir.Node, affine: AffineType) -> ir.DataType:
    """The type its kernel moves: that of the codes where there is one that fills as it should."""
    if is_wide(affine):
        wider = _WIDENED.get(node.op_type)
        return wider or (_INT32 if node.op_type in _NARROW_ONLY else affine.dtype)
    if node.op_type == "CenterCropPad" and affine.symmetric:
        return affine.dtype
    return _WIDENED.get(node.op_type, affine.dtype)


def _widened(
    move: Move,
    inputs: list[ir.Value | None],
    attributes: Mapping[str, AttributeValue | ir.Attr],
    affine: AffineType,
    build: Builder,
) -> Sequence[ir.Value]:
    """The op on wider integers; as distances from the zero point where it fills with zeros."""
    node, dtype, codes = move.node, _kernel_type(move.node, affine), inputs[0]
    output = node.outputs[0]
    assert codes is not None
    offset = affine.zero_point.astype(dtype.numpy())
    centred = node.op_type in _FILLS_WITH_ZERO and not affine.symmetric
    before = IntegerOps(build, output, codes.shape)
    wide = before.cast(codes, dtype)
    if centred:
        wide = before.op("Sub", [wide, build.constant(offset, "zero_point_wide")], dtype)
    first, *others = _insert(move, [wide, *inputs[1:]], dtype, build, attributes)
    if build.types.get(output) is None:
        return [first, *others]
    after = IntegerOps(build, output, output.shape)
    if centred:
        first = after.op("Add", [first, build.constant(offset, "zero_point_wide")], dtype)
    return [after.cast(first, affine.dtype), *others]


def _reduce_max(
    node: ir.Node, codes: ir.Value | None, affine: AffineType, build: Builder
) -> ir.Value:
    """GlobalMaxPool, which has no integer form, as the reduction it is."""
    output = node.outputs[0]
    assert codes is not None
    known = (value.shape for value in (node.inputs[0], output) if value is not None)
    rank = next(len(shape) for shape in known if shape is not None)
    axes, dtype = list(range(2, rank)), _INT32 if is_wide(affine) else affine.dtype
    inputs = [IntegerOps(build, output, codes.shape).cast(codes, dtype)]
    attributes: dict[str, AttributeValue] = {"axes": axes}
    if build.rewriter.opset(node) >= _AXES_ARE_INPUTS:
        inputs.append(build.constant(np.array(axes, np.int64), "axes"))
        attributes = {}
    after = IntegerOps(build, output, output.shape)
    return after.cast(after.op("ReduceMax", inputs, dtype, attributes), affine.dtype)
