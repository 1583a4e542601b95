"""Operators computed in numpy, bit for bit as ONNX Runtime computes them.

Only what is exact is here: data movement, integer arithmetic, and float operations that IEEE 754
rounds in one way. Transcendental functions, float reductions and 16-bit float arithmetic are not.
A kernel reserves the size of its result before it makes it, and raises where it will not compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.constants import Array

ArrayLike: TypeAlias = Array | np.generic


class NotFoldableError(Exception):
    """This operator, on these values, is not computed at compile time."""


@dataclass(frozen=True)
class Call:
    """One operator applied to constants.

    Attributes:
        op_type: The operator.
        opset: Version of ai.onnx it is read under.
        inputs: One array per input; None where an optional input is absent.
        attributes: The node's attributes.
        outputs: Number of outputs wanted.
        max_bytes: Largest result allowed.
    """

    op_type: str
    opset: int
    inputs: Sequence[Array | None]
    attributes: Mapping[str, ir.Attr]
    outputs: int
    max_bytes: int

    def optional(self, index: int) -> Array | None:
        """Input ``index``; None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> Array:
        """Input ``index``.

        Raises:
            NotFoldableError: It is absent.
        """
        array = self.optional(index)
        if array is None:
            raise NotFoldableError
        return array

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or ``default``."""
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.value

    def ints(self, name: str, index: int) -> list[int] | None:
        """Integers given as the attribute ``name`` (older opsets) or as input ``index``."""
        attribute = self.attributes.get(name)
        if attribute is not None:
            return list(attribute.as_ints())
        array = self.optional(index)
        return None if array is None else [int(each) for each in array.reshape(-1)]

    def reserve(self, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        """Ask to make an array of ``shape`` before making it.

        Raises:
            NotFoldableError: It would be larger than allowed.
        """
        if math.prod(shape) * np.dtype(dtype).itemsize > self.max_bytes:
            raise NotFoldableError


Kernel: TypeAlias = Callable[[Call], "ArrayLike | tuple[ArrayLike, ...]"]

_ARITHMETIC_KINDS = "iu"
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NARROW_FLOATS = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


# Movement


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
    shape = _broadcast_shape(source.shape, [int(each) for each in call.required(1)])
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
    if start.dtype.kind not in _ARITHMETIC_KINDS:
        raise NotFoldableError
    steps = range(int(start.item()), int(limit.item()), int(delta.item()))
    call.reserve([len(steps)], start.dtype)
    return np.arange(steps.start, steps.stop, steps.step, dtype=start.dtype)


def _where(call: Call) -> ArrayLike:
    condition, chosen, other = (call.required(index) for index in range(3))
    call.reserve(_broadcast_shape(condition.shape, chosen.shape, other.shape), chosen.dtype)
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


# Element-wise


def _broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(tuple(shape) for shape in shapes))


def _elementwise(compute: Callable[..., Any], *, kinds: str, result: Any = None) -> Kernel:
    """A kernel over broadcast inputs whose element kinds are all in ``kinds``.

    ``f`` in ``kinds`` means float32 and float64 only; a float result with NaN is not folded,
    since the bits of a NaN are not defined.
    """

    def kernel(call: Call) -> ArrayLike:
        arrays = [call.required(index) for index in range(len(call.inputs))]
        for array in arrays:
            if array.dtype.kind not in kinds or array.dtype in _NARROW_FLOATS:
                raise NotFoldableError
        shape = _broadcast_shape(*(array.shape for array in arrays))
        dtype = arrays[0].dtype if result is None else np.dtype(result)
        call.reserve(shape, dtype)
        with np.errstate(all="ignore"):
            computed = np.asarray(compute(*arrays))
        if computed.dtype.kind == "f" and np.isnan(computed).any():
            raise NotFoldableError
        return computed.astype(dtype, copy=False)

    return kernel


def _divide(dividend: Array, divisor: Array) -> ArrayLike:
    if dividend.dtype.kind == "f":
        return dividend / divisor
    if not divisor.all() or np.any(divisor == -1):
        raise NotFoldableError  # division by zero, and INT_MIN / -1
    quotient = dividend // divisor
    # C truncates toward zero, numpy rounds down.
    return quotient + ((quotient < 0) & (quotient * divisor != dividend))


def _modulo(call: Call) -> ArrayLike | tuple[ArrayLike, ...]:
    if call.attribute("fmod", 0) or not call.required(1).all():
        raise NotFoldableError
    return _REMAINDER(call)


_REMAINDER = _elementwise(np.mod, kinds=_ARITHMETIC_KINDS)


def _fold_extremum(choose: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def compute(first: Array, *others: Array) -> Any:
        _refuse_signed_zeros(first, *others)
        chosen: Any = first
        for array in others:
            chosen = choose(chosen, array)
        return chosen

    return compute


def _refuse_signed_zeros(*arrays: Array) -> None:
    """Which of -0 and +0 is the larger one is not defined."""
    for array in arrays:
        if array.dtype.kind == "f" and np.any(np.signbit(array) & (array == 0)):
            raise NotFoldableError


def _sum(first: Array, *others: Array) -> Any:
    if len(others) > 1 and first.dtype.kind == "f":
        raise NotFoldableError  # the order of additions is not defined
    total: Any = first
    for array in others:
        total = total + array
    return total


def _cast(call: Call) -> ArrayLike:
    source = call.required(0)
    target = ir.DataType(call.attribute("to")).numpy()
    call.reserve(source.shape, target)
    if not _castable(source.dtype) or not _castable(target):
        raise NotFoldableError
    if target == source.dtype:
        return source
    if target.kind == "b":
        return source.astype(np.float32) != 0 if source.dtype in _NARROW_FLOATS else source != 0
    with np.errstate(all="ignore"):
        converted = source.astype(target)
        if target.kind not in "iu" and np.isnan(converted).any():
            raise NotFoldableError
        if _has_one_result(source.dtype, target):
            return converted
        # Saturation and rounding to 16 bits differ: only what converts exactly.
        whole = np.trunc(source) if target.kind in _ARITHMETIC_KINDS else source
        if not np.array_equal(converted.astype(source.dtype), whole):
            raise NotFoldableError
    return converted


def _castable(dtype: np.dtype[Any]) -> bool:
    numeric = dtype.kind in "iubf" and dtype.type.__module__ == "numpy"
    return numeric or dtype in _NARROW_FLOATS


def _has_one_result(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Integers wrap around, and float32 and float64 round to nearest.

    16-bit floats do not qualify: ONNX Runtime skips the rounding where the next operator has no
    16-bit kernel.
    """
    if target.kind in "iu":
        return source.kind in "iub"
    return target in _FLOATS


def _dequantize(call: Call) -> ArrayLike:
    stored, scale, zero_point = call.required(0), call.required(1), call.optional(2)
    if stored.dtype.kind not in "iu" or scale.dtype != np.dtype(np.float32) or scale.ndim > 1:
        raise NotFoldableError
    if call.attribute("block_size", 0):
        raise NotFoldableError
    call.reserve(stored.shape, scale.dtype)
    shape = [1] * stored.ndim
    if scale.ndim == 1 and scale.size > 1:
        shape[call.attribute("axis", 1)] = scale.size
    offset = np.int32(0) if zero_point is None else zero_point.astype(np.int32).reshape(shape)
    centered = stored.astype(np.int32) - offset
    return centered.astype(np.float32) * scale.reshape(shape)


# Reductions that have one result whatever the order


def _reduction(compute: Callable[..., Any], *, floats: bool) -> Kernel:
    def kernel(call: Call) -> ArrayLike:
        source = call.required(0)
        call.reserve(source.shape, source.dtype)
        if source.dtype.kind not in ("iuf" if floats else "iu") or source.dtype in _NARROW_FLOATS:
            raise NotFoldableError
        if source.dtype.kind == "f" and np.isnan(source).any():
            raise NotFoldableError
        axes = call.ints("axes", 1)
        if not axes and call.attribute("noop_with_empty_axes", 0):
            raise NotFoldableError
        _refuse_signed_zeros(source)
        keep = bool(call.attribute("keepdims", 1))
        reduced = compute(source, axis=tuple(axes) if axes else None, keepdims=keep)
        return np.asarray(reduced).astype(source.dtype, copy=False)

    return kernel


_NUMBERS = "iuf"
_ANY = "iufb"

KERNELS: dict[str, Kernel] = {
    "Abs": _elementwise(np.abs, kinds=_NUMBERS),
    "Add": _elementwise(np.add, kinds=_NUMBERS),
    "And": _elementwise(np.logical_and, kinds="b"),
    "Cast": _cast,
    "Ceil": _elementwise(np.ceil, kinds="f"),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(_divide, kinds=_NUMBERS),
    "Equal": _elementwise(np.equal, kinds=_ANY, result=np.bool_),
    "Expand": _expand,
    "Flatten": _same_size(_flatten),
    "Floor": _elementwise(np.floor, kinds="f"),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Greater": _elementwise(np.greater, kinds=_NUMBERS, result=np.bool_),
    "GreaterOrEqual": _elementwise(np.greater_equal, kinds=_NUMBERS, result=np.bool_),
    "Less": _elementwise(np.less, kinds=_NUMBERS, result=np.bool_),
    "LessOrEqual": _elementwise(np.less_equal, kinds=_NUMBERS, result=np.bool_),
    "Max": _elementwise(_fold_extremum(np.maximum), kinds=_NUMBERS),
    "Min": _elementwise(_fold_extremum(np.minimum), kinds=_NUMBERS),
    "Mod": _modulo,
    "Mul": _elementwise(np.multiply, kinds=_NUMBERS),
    "Neg": _elementwise(np.negative, kinds=_NUMBERS),
    "NonZero": _non_zero,
    "Not": _elementwise(np.logical_not, kinds="b"),
    "Or": _elementwise(np.logical_or, kinds="b"),
    "Pad": _pad,
    "Range": _range,
    "ReduceMax": _reduction(np.max, floats=True),
    "ReduceMin": _reduction(np.min, floats=True),
    "ReduceProd": _reduction(np.prod, floats=False),
    "ReduceSum": _reduction(np.sum, floats=False),
    "Reshape": _same_size(_reshape),
    "Shape": _shape,
    "Size": _size,
    "Slice": _same_size(_slice),
    "Split": _split,
    "Sqrt": _elementwise(np.sqrt, kinds="f"),
    "Squeeze": _same_size(_squeeze),
    "Sub": _elementwise(np.subtract, kinds=_NUMBERS),
    "Sum": _elementwise(_sum, kinds=_NUMBERS),
    "Tile": _tile,
    "Transpose": _same_size(_transpose),
    "Trilu": _same_size(_trilu),
    "Unsqueeze": _same_size(_unsqueeze),
    "Where": _where,
    "Xor": _elementwise(np.logical_xor, kinds="b"),
}
"""Operators of ai.onnx with an exact numpy form."""
