"""Kernels of operators that compute, where there is one right result.

Integer arithmetic, comparisons, float operations that IEEE 754 rounds in one way, and reductions
that have one result whatever the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.kernel_call import (
    ArrayLike,
    Call,
    Kernel,
    NotFoldableError,
    broadcast_shape,
)

_ARITHMETIC_KINDS = "iu"
_NUMBERS = "iuf"
_ANY = "iufb"
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NARROW_FLOATS = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


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
        shape = broadcast_shape(*(array.shape for array in arrays))
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


ARITHMETIC: dict[str, Kernel] = {
    "Abs": _elementwise(np.abs, kinds=_NUMBERS),
    "Add": _elementwise(np.add, kinds=_NUMBERS),
    "And": _elementwise(np.logical_and, kinds="b"),
    "Cast": _cast,
    "Ceil": _elementwise(np.ceil, kinds="f"),
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(_divide, kinds=_NUMBERS),
    "Equal": _elementwise(np.equal, kinds=_ANY, result=np.bool_),
    "Floor": _elementwise(np.floor, kinds="f"),
    "Greater": _elementwise(np.greater, kinds=_NUMBERS, result=np.bool_),
    "GreaterOrEqual": _elementwise(np.greater_equal, kinds=_NUMBERS, result=np.bool_),
    "Less": _elementwise(np.less, kinds=_NUMBERS, result=np.bool_),
    "LessOrEqual": _elementwise(np.less_equal, kinds=_NUMBERS, result=np.bool_),
    "Max": _elementwise(_fold_extremum(np.maximum), kinds=_NUMBERS),
    "Min": _elementwise(_fold_extremum(np.minimum), kinds=_NUMBERS),
    "Mod": _modulo,
    "Mul": _elementwise(np.multiply, kinds=_NUMBERS),
    "Neg": _elementwise(np.negative, kinds=_NUMBERS),
    "Not": _elementwise(np.logical_not, kinds="b"),
    "Or": _elementwise(np.logical_or, kinds="b"),
    "ReduceMax": _reduction(np.max, floats=True),
    "ReduceMin": _reduction(np.min, floats=True),
    "ReduceProd": _reduction(np.prod, floats=False),
    "ReduceSum": _reduction(np.sum, floats=False),
    "Sqrt": _elementwise(np.sqrt, kinds="f"),
    "Sub": _elementwise(np.subtract, kinds=_NUMBERS),
    "Sum": _elementwise(_sum, kinds=_NUMBERS),
    "Xor": _elementwise(np.logical_xor, kinds="b"),
}
"""Arithmetic, comparisons and reductions, by operator of ai.onnx."""
