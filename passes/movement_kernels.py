"""Kernels of operators that move data: what they return, they read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.kernel_call import (
    ArrayLike,
    Call,
    Kernel,
    NotFoldableError,
    broadcast_shape,
)


def _same_size(compute: Callable[[Call, Array], ArrayLike]) -> Kernel:
    """A kernel whose result is no larger than its first input."""

    def kernel(call: Call) -> ArrayLike:
        source = call.required(0)
        call.reserve(source.shape, source.dtype)
        return compute(call, source)

    return kernel


def _reshape(call: Call, source: Array) -> Array:
    target = [int(each) for each in call.required(1)]
    if not call.attribute("allowzero", 0):
        target = [source.shape[i] if dim == 0 else dim for i, dim in enumerate(target)]
    return source.reshape(target)


def _flatten(call: Call, source: Array) -> Array:
    axis = call.attribute("axis", 1)
    axis = axis + source.ndim if axis < 0 else axis
    return source.reshape(math.prod(source.shape[:axis]), math.prod(source.shape[axis:]))


def _transpose(call: Call, source: Array) -> Array:
    return np.transpose(source, call.attribute("perm"))


def _squeeze(call: Call, source: Array) -> Array:
    axes = call.ints("axes", 1)
    return source.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(call: Call, source: Array) -> Array:
    axes = call.ints("axes", 1)
    if axes is None:
        raise NotFoldableError
    return np.expand_dims(source, tuple(axes))


def _slice(call: Call, source: Array) -> Array:
    starts, ends = call.ints("starts", 1), call.ints("ends", 2)
    if starts is None or ends is None:
        raise NotFoldableError
    axes = call.ints("axes", 3) or list(range(len(starts)))
    steps = call.ints("steps", 4) or [1] * len(starts)
    index: list[slice[Any, Any, Any]] = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = _python_slice(start, end, step, source.shape[axis])
    return source[tuple(index)]


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps both bounds; Python reads the clamped -1 of a negative step as the last."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start, end = min(max(start, max(low, 0)), high), min(max(end, low), size)
    return slice(start, None if step < 0 and end < 0 else end, step)


def _gather(call: Call) -> ArrayLike:
    source, indices = call.required(0), call.required(1)
    axis = call.attribute("axis", 0)
    axis = axis + source.ndim if axis < 0 else axis
    shape = (*source.shape[:axis], *indices.shape, *source.shape[axis + 1 :])
    call.reserve(shape, source.dtype)
    return np.take(source, indices, axis=axis)


def _gather_nd(call: Call) -> ArrayLike:
    source, indices = call.required(0), call.required(1)
    if call.attribute("batch_dims", 0):
        raise NotFoldableError
    depth = indices.shape[-1]
    call.reserve((*indices.shape[:-1], *source.shape[depth:]), source.dtype)
    return source[tuple(np.moveaxis(indices, -1, 0))]


def _concat(call: Call) -> ArrayLike:
    parts = [call.required(index) for index in range(len(call.inputs))]
    call.reserve([sum(part.size for part in parts)], parts[0].dtype)
    return np.concatenate(parts, axis=call.attribute("axis"))


def _split(call: Call) -> tuple[ArrayLike, ...]:
    source = call.required(0)
    call.reserve(source.shape, source.dtype)
    axis = call.attribute("axis", 0)
    sizes = call.ints("split", 1)
    if sizes is None:
        chunk = -(-source.shape[axis] // call.outputs)
        sizes = [chunk] * (call.outputs - 1)
    else:
        sizes = sizes[:-1]
    parts = np.split(source, np.cumsum(sizes, dtype=np.int64), axis=axis)
    if len(parts) != call.outputs:
        raise NotFoldableError
    return tuple(parts)


def _expand(call: Call) -> ArrayLike:
    source = call.required(0)
    shape = broadcast_shape(source.shape, [int(each) for each in call.required(1)])
    call.reserve(shape, source.dtype)
    return np.broadcast_to(source, shape)


def _tile(call: Call) -> ArrayLike:
    source = call.required(0)
    repeats = [int(each) for each in call.required(1)]
    shape = [size * count for size, count in zip(source.shape, repeats, strict=True)]
    call.reserve(shape, source.dtype)
    return np.tile(source, repeats)


def _pad(call: Call) -> ArrayLike:
    source, pads, axes = call.required(0), call.ints("pads", 1), call.ints("axes", 3)
    mode = call.attribute("mode", "constant")
    if pads is None or axes is not None or mode != "constant" or min(pads, default=0) < 0:
        raise NotFoldableError
    before, after = pads[: source.ndim], pads[source.ndim :]
    shape = [sum(sizes) for sizes in zip(before, source.shape, after, strict=True)]
    call.reserve(shape, source.dtype)
    fill = call.optional(2)
    value = call.attribute("value", 0.0) if fill is None else fill.reshape(())
    padded = np.full(shape, np.asarray(value).astype(source.dtype))
    inner = (slice(low, low + size) for low, size in zip(before, source.shape, strict=True))
    padded[tuple(inner)] = source
    return padded


def _constant_of_shape(call: Call) -> ArrayLike:
    shape = [int(each) for each in call.required(0)]
    value = call.attribute("value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy().reshape(-1)
    call.reserve(shape, fill.dtype)
    return np.full(shape, fill[0], dtype=fill.dtype)


def _range(call: Call) -> ArrayLike:
    start, limit, delta = (call.required(index) for index in range(3))
    if start.dtype.kind not in "iu":
        raise NotFoldableError
    steps = range(int(start.item()), int(limit.item()), int(delta.item()))
    call.reserve([len(steps)], start.dtype)
    return np.arange(steps.start, steps.stop, steps.step, dtype=start.dtype)


def _where(call: Call) -> ArrayLike:
    condition, chosen, other = (call.required(index) for index in range(3))
    call.reserve(broadcast_shape(condition.shape, chosen.shape, other.shape), chosen.dtype)
    return np.where(condition, chosen, other)


def _trilu(call: Call, source: Array) -> ArrayLike:
    diagonal = call.optional(1)
    keep = np.triu if call.attribute("upper", 1) else np.tril
    return keep(source, 0 if diagonal is None else int(diagonal.item()))


def _non_zero(call: Call) -> ArrayLike:
    source = call.required(0)
    call.reserve([source.size * max(source.ndim, 1)], np.int64)
    found = np.nonzero(np.atleast_1d(source))
    return np.array(found, dtype=np.int64)


def _size(call: Call) -> ArrayLike:
    return np.int64(call.required(0).size)


def _shape(call: Call) -> ArrayLike:
    dims = np.array(call.required(0).shape, dtype=np.int64)
    return dims[call.attribute("start", 0) : call.attribute("end")]


MOVEMENT: dict[str, Kernel] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _same_size(_flatten),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _same_size(_reshape),
    "Shape": _shape,
    "Size": _size,
    "Slice": _same_size(_slice),
    "Split": _split,
    "Squeeze": _same_size(_squeeze),
    "Tile": _tile,
    "Transpose": _same_size(_transpose),
    "Trilu": _same_size(_trilu),
    "Unsqueeze": _same_size(_unsqueeze),
    "Where": _where,
}
"""Data movement and shapes, by operator of ai.onnx."""
