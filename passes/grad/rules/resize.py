"""The gradient of Resize: each axis is multiplied with the matrix that the operator is along it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_array
from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.rules.axis_matrices import identity_of, times_transposed
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Resize")
def resize(call: Call, b: Builder) -> Gradients:
    """Y = A_1 (x) ... (x) A_r X, so dX is dY times each matrix transposed.

    The matrix of an axis is read off the operator itself, which resizes the rows of an identity:
    whatever the mode, the forward pass and the gradient agree. What extrapolates adds a constant.
    """
    if call.string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refusal("it keeps the aspect ratio of its sizes; give it scales")
    x, gradient = call.x(0), call.gradient
    repeated = _repeats(call)
    if repeated is not None:
        kernel = repeated[2:]
        mean = b.op("AveragePool", gradient, kernel_shape=kernel, strides=kernel, like=x)
        return (b.mul(mean, b.number(float(np.prod(kernel)), x)),)
    for axis in reversed(_resized_axes(call)):
        gradient = times_transposed(b, gradient, _matrix(call, b, axis), axis, rank_of(x))
    return (b.reshape_like(gradient, x),)


def _axes(call: Call) -> tuple[int, ...]:
    """The axes that scales, sizes and regions of interest have a number for."""
    rank = rank_of(call.x(0))
    axes = call.ints("axes")
    return tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)


def _resized_axes(call: Call) -> list[int]:
    """The axes whose size may change, or that a region of interest cuts."""
    x, y = call.x(0), call.y()
    scales = _scales(call)
    cropped = call.string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    resized: list[int] = []
    for place, axis in enumerate(_axes(call)):
        alike = _axis_is_kept(x, y, axis) if scales is None else scales[place] == 1.0
        # Batch and channels are interpolated by nobody, and nearest neighbours may repeat them.
        outer = axis < 2 and rank_of(x) > 3 and call.string("mode", "nearest") != "nearest"
        if not outer and (cropped or not alike):
            resized.append(axis)
    return resized


def _axis_is_kept(x: ir.Value, y: ir.Value, axis: int) -> bool:
    if x.shape is None or y.shape is None:
        return False
    before, after = x.shape[axis], y.shape[axis]
    known = isinstance(before, int) or before.value is not None
    return known and before == after


def _scales(call: Call) -> tuple[float, ...] | None:
    """The scales where they are a constant."""
    array = constant_array(call.optional(2))
    return None if array is None or not array.size else tuple(float(each) for each in array)


def _repeats(call: Call) -> tuple[int, ...] | None:
    """How often nearest neighbours repeat each element along each axis; None if it is not that."""
    rank, scales = rank_of(call.x(0)), _scales(call)
    if scales is None or call.ints("axes") is not None or rank not in (3, 4, 5):
        return None
    how = (
        call.string("coordinate_transformation_mode", "half_pixel"),
        call.string("nearest_mode", "round_prefer_floor"),
    )
    evenly = (("half_pixel", "round_prefer_floor"), ("asymmetric", "floor"))
    if call.string("mode", "nearest") != "nearest" or how not in evenly:
        return None
    whole = tuple(int(scale) for scale in scales)
    if whole != scales or min(whole) < 1 or whole[:2] != (1, 1):
        return None
    return whole


def _matrix(call: Call, b: Builder, axis: int) -> ir.Value:
    """[input size, output size]: the rows of an identity, resized."""
    x, place = call.x(0), _axes(call).index(axis)
    region = scales = sizes = None
    if call.string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        region = _region(call, b, place)
    if _given(call, 2):
        one = b.constant(np.ones(1, np.float32))
        scales = b.op("Concat", one, _element(b, call.x(2), place), axis=0)
    else:
        sizes = b.op("Concat", b.dim(x, axis), _element(b, call.x(3), place), axis=0)
    return b.op(
        "Resize",
        identity_of(b, x, axis),
        region,
        scales,
        sizes,
        mode=call.string("mode", "nearest"),
        nearest_mode=call.string("nearest_mode", "round_prefer_floor"),
        coordinate_transformation_mode=call.string("coordinate_transformation_mode", "half_pixel"),
        cubic_coeff_a=call.float("cubic_coeff_a", -0.75),
        exclude_outside=call.int("exclude_outside", 0),
        antialias=call.int("antialias", 0),
    )


def _given(call: Call, index: int) -> bool:
    """Whether an input is there, and not an empty tensor in the place of nothing."""
    value = call.optional(index)
    return value is not None and (value.shape is None or value.shape[0] != 0)


def _region(call: Call, b: Builder, place: int) -> ir.Value:
    """The region of interest of an identity: all of its rows, and the axis' own columns."""
    region, count = call.x(1), len(_axes(call))
    low, high = (b.constant(np.array([edge], dtype_of(region).numpy())) for edge in (0, 1))
    first, last = (_element(b, region, each) for each in (place, count + place))
    return b.op("Concat", low, first, high, last, axis=0)


def _element(b: Builder, vector: ir.Value, place: int) -> ir.Value:
    return b.op("Slice", vector, b.ints(place), b.ints(place + 1))
