"""MaxPool of 16-bit codes, which has no kernel: the larger of shifted slices, axis by axis."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.windows import WindowAxis, shape_of_image, window_axes

_INT32 = ir.DataType.INT32
_END = 2**31 - 1
_SPATIAL = 2  # batch and channels come first


def write_wide_max_pool(
    node: ir.Node, codes: ir.Value | None, affine: AffineType, build: Builder
) -> ir.Value:
    """MaxPool with one output, in int32; its windows do not depend on sizes not known."""
    output, axes = node.outputs[0], window_axes(node, shape_of_image(node))
    assert codes is not None
    assert axes is not None
    insert = partial(build.insert, like=output, shape=None)
    wide = insert("Cast", [codes], dtype=_INT32, attributes={"to": int(_INT32)})
    pads = [0, 0, *(axis.begin for axis in axes), 0, 0, *(axis.end for axis in axes)]
    if any(pads):
        lowest = build.constant(np.array(affine.limits[0], np.int32), "lowest_code")
        inputs = [wide, build.constant(np.array(pads, np.int64), "pads"), lowest]
        wide = insert("Pad", inputs, dtype=_INT32)
    for index, axis in enumerate(axes):
        taps = [
            _slice(wide, tap, index + _SPATIAL, axis, output, build) for tap in range(axis.size)
        ]
        wide = insert("Max", taps, dtype=_INT32) if len(taps) > 1 else taps[0]
    to = {"to": int(affine.dtype)}
    return build.insert("Cast", [wide], output, affine.dtype, attributes=to)


def _slice(
    value: ir.Value, tap: int, along: int, axis: WindowAxis, like: ir.Value, build: Builder
) -> ir.Value:
    """What tap number ``tap`` of each window along axis ``along`` reads."""
    start = tap * axis.dilation
    behind = (axis.size - 1) * axis.dilation - start
    names = {"start": start, "end": -behind if behind else _END, "axis": along, "step": axis.stride}
    inputs = [build.constant(np.array([each], np.int64), name) for name, each in names.items()]
    return build.insert("Slice", [value, *inputs], like, _INT32, shape=None)
