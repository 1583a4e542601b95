"""Data movement on codes, and limits on them, written the same way for all integer targets.

Where the oldest supported ONNX Runtime has no 8-bit kernel of an op (``_WIDENED``), it is done on
wider integers, which hold all codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.lowering import Clamp, Move, Scatter
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.fixed_point import IntegerOps
from onnxfold.passes.literals import AttributeValue

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64
_WIDENED = {"CenterCropPad": _INT32, "TopK": _INT32, "Trilu": _INT64}
_FILLS_WITH_ZERO = frozenset({"CenterCropPad", "Trilu"})
_AXES_ARE_INPUTS = 18
"""Since this opset ReduceMax takes its axes as an input."""
_RESIZE_HAS_AXES = 18
_CROP = "tf_crop_and_resize"


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
    for position, array in move.constants.items():
        inputs += [None] * (position + 1 - len(inputs))
        inputs[position] = build.constant(array, f"{node.outputs[0].name}_fill")
    if node.op_type == "GlobalMaxPool":
        return [_reduce_max(node, inputs[0], known.type, build)]
    if node.op_type == "SpaceToDepth" and (found := _space_to_depth(node, inputs[0], build)):
        return [found]
    if node.op_type == "Resize" and (sizes := _sizes(node, inputs[0], build)):
        return _insert(move, [inputs[0], None, None, sizes[0]], known.type.dtype, build, sizes[1])
    if node.op_type in _WIDENED and not _can_stay_narrow(node, known.type):
        return _widened(move, inputs, known.type, build)
    return _insert(move, inputs, known.type.dtype, build, _attributes(node, known.type))


def write_scatter(scatter: Scatter, codes: Sequence[ir.Value], build: Builder) -> ir.Value:
    """ScatterElements or ScatterND of data and updates that are codes of one type."""
    node, (data, updates) = scatter.node, codes
    inputs = [data, node.inputs[1], updates]
    dtype, attributes = scatter.type.dtype, node.attributes
    return build.insert(node.op_type, inputs, node.outputs[0], dtype, attributes=attributes)


def write_clamp(clamp: Clamp, build: Builder) -> ir.Value:
    """Limits on codes as a Clip of codes."""
    output, dtype = clamp.node.outputs[0], clamp.type.dtype
    bounds = [
        build.constant(np.array(bound, dtype.numpy()), "code_limit")
        for bound in (clamp.low, clamp.high)
    ]
    return build.insert("Clip", [build.codes_of(clamp.reads[0]), *bounds], output, dtype)


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


def _can_stay_narrow(node: ir.Node, affine: AffineType) -> bool:
    """Whether its kernel for 8 bits exists, and fills with what stands for 0."""
    return node.op_type == "CenterCropPad" and affine.symmetric


def _widened(
    move: Move, inputs: list[ir.Value | None], affine: AffineType, build: Builder
) -> Sequence[ir.Value]:
    """The op on wider integers; as distances from the zero point where it fills with zeros."""
    node, dtype, codes = move.node, _WIDENED[move.node.op_type], inputs[0]
    output = node.outputs[0]
    assert codes is not None
    offset = affine.zero_point.astype(dtype.numpy())
    centred = node.op_type in _FILLS_WITH_ZERO and not affine.symmetric
    before = IntegerOps(build, output, codes.shape)
    wide = before.cast(codes, dtype)
    if centred:
        wide = before.op("Sub", [wide, build.constant(offset, "zero_point_wide")], dtype)
    first, *others = _insert(move, [wide, *inputs[1:]], dtype, build, node.attributes)
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
    known = (value.shape for value in (node.inputs[0], output) if value is not None)
    rank = next(len(shape) for shape in known if shape is not None)
    axes = list(range(2, rank))
    if build.rewriter.opset(node) < _AXES_ARE_INPUTS:
        attributes = {"axes": axes}
        return build.insert("ReduceMax", [codes], output, affine.dtype, attributes=attributes)
    inputs = [codes, build.constant(np.array(axes, np.int64), "axes")]
    return build.insert("ReduceMax", inputs, output, affine.dtype)


def _space_to_depth(node: ir.Node, codes: ir.Value | None, build: Builder) -> ir.Value | None:
    """SpaceToDepth as a Transpose; None where more than the batch size is not known."""
    output, block = node.outputs[0], node.attributes.get_int("blocksize", 1)
    if codes is None or codes.dtype is None or codes.shape is None:
        return None
    sizes = [size for size in list(codes.shape)[1:] if isinstance(size, int)]
    if len(sizes) != 3 or 0 in sizes:
        return None
    channels, rows, columns = sizes[0], sizes[1] // block, sizes[2] // block
    split = [0, channels, rows, block, columns, block]
    joined = [0, channels * block * block, rows, columns]
    dtype, batch = codes.dtype, codes.shape[0]

    def reshape(value: ir.Value, to: list[int]) -> ir.Value:
        shape = build.constant(np.array(to, np.int64), "shape")
        known = ir.Shape([batch, *to[1:]])
        return build.insert("Reshape", [value, shape], output, dtype, shape=known)

    perm = [0, 3, 5, 1, 2, 4]
    blocks = reshape(codes, split)
    shape = ir.Shape([batch, *[split[axis] for axis in perm[1:]]])
    turned = build.insert(
        "Transpose", [blocks], output, dtype, attributes={"perm": perm}, shape=shape
    )
    return reshape(turned, joined)
