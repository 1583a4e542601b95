"""Arrays as other types of the same kind: what is fed need not be of the model's very type."""

from __future__ import annotations

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.specs import dtype_name, is_float, is_integer


def cast(array: Array, dtype: np.dtype[np.generic]) -> Array:
    """``array`` as ``dtype`` where that loses nothing but float precision.

    Raises:
        ValueError: One holds integers and the other does not, which the message leaves to the
            caller to say; or values are out of range, which it says.
    """
    if dtype_name(array.dtype) == dtype_name(dtype):
        return array.astype(object) if dtype.kind == "O" else array.astype(dtype, copy=False)
    integers = is_integer(array.dtype) and is_integer(dtype)
    if not integers and not (is_float(array.dtype) and is_float(dtype)):
        raise ValueError
    with np.errstate(over="ignore", invalid="ignore"):
        result: Array = array.astype(dtype)
    kept = (
        np.array_equal(_exact(result), _exact(array))
        if integers
        else np.array_equal(np.isfinite(result), np.isfinite(array))
    )
    if not kept:
        raise ValueError(" with values out of range")
    return result


def _exact(array: Array) -> Array:
    """Integers as Python's own, so that comparing them across types loses nothing."""
    return array.astype(np.uint64 if array.dtype == np.uint64 else np.int64).astype(object)
