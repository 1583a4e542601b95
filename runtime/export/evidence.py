"""Says which answers of a framework could not show an error: saturated ones, and ones that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.specs import Feed

_FEW = 0.1
"""Share of values that tell something, below which an output tells little ..."""
_ENOUGH = 64
"""... unless there are that many."""
_RELATIVE = 1e-4
_ENDS = 2
"""A saturated output, a softmax of codes for one, is at one of two values; labels and truth values
have only a few, so that only the most frequent one tells nothing."""


@dataclass(frozen=True)
class Weak:
    """An output that says little about what is computed ahead of it.

    Attributes:
        name: The output.
        values: How many values there are, over all samples.
        telling: How many are neither at an end nor the same for every sample.
    """

    name: str
    values: int
    telling: int

    def __str__(self) -> str:
        """For reports."""
        return (
            f"output '{self.name}' says little: {self.values - self.telling} of {self.values} "
            "values are at an end, or the same for every sample"
        )


def weak_outputs(found: Sequence[Feed]) -> tuple[Weak, ...]:
    """The outputs that an error far ahead of them may leave as they are.

    Labels and truth values are only looked at where there are no quantities.

    Args:
        found: What the framework computed of each sample, by output.
    """
    return tuple(each for each in _all_judged(found) if _says_little(each))


def says_nothing(found: Sequence[Feed]) -> bool:
    """Whether not one value of all that the framework computed tells anything."""
    return not any(each.telling for each in _all_judged(found))


def says_something(values: Sequence[Array]) -> bool:
    """Whether a tensor, of which there is one array a sample, is no weak one."""
    return not _says_little(_judged("", values))


def _all_judged(found: Sequence[Feed]) -> list[Weak]:
    names = list(found[0]) if found else []
    quantities = [name for name in names if _is_quantity(found[0][name])]
    return [
        _judged(name, [np.asarray(each[name]) for each in found]) for name in quantities or names
    ]


def _says_little(each: Weak) -> bool:
    return each.telling < min(_FEW * each.values, _ENOUGH)


def _judged(name: str, arrays: Sequence[Array]) -> Weak:
    flat = np.concatenate([_comparable(each).reshape(-1) for each in arrays])
    step = _step(arrays[0], flat)
    dull: Array = np.isnan(flat)
    for _ in range(_ENDS if _is_quantity(arrays[0]) else 1):
        dull = dull | _most_frequent(flat, dull, step)
    if len(arrays) > 1 and len({each.shape for each in arrays}) == 1:
        rows = flat.reshape(len(arrays), -1)
        constant: Array = np.ptp(rows, axis=0) <= step
        dull = dull | np.tile(constant, len(arrays))
    return Weak(name, flat.size, int(np.count_nonzero(~dull)))


def _most_frequent(flat: Array, done: Array, step: float) -> Array:
    """Which values are as good as the most frequent one of the rest; none if none is repeated."""
    values, counts = np.unique(flat[~done], return_counts=True)
    nothing: Array = np.zeros(flat.shape, bool)
    if not counts.size:
        return nothing
    near = np.abs(flat - values[np.argmax(counts)]) <= step
    return near if np.count_nonzero(near & ~done) > 1 else nothing


def _step(array: Array, flat: Array) -> float:
    """How far two values may be apart for a gate that takes them for equal."""
    if array.dtype.kind == "f":
        finite = flat[np.isfinite(flat)]
        return _RELATIVE * float(np.max(np.abs(finite), initial=0.0))
    return 1.0 if array.dtype.kind in "iu" and array.dtype.itemsize <= 2 else 0.0


def _is_quantity(array: Any) -> bool:
    dtype = np.asarray(array).dtype
    return dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize <= 2)


def _comparable(array: Array) -> Array:
    """Numbers for all types: of text, which of the values it is."""
    if array.dtype.kind in "OUS":
        return np.unique(array.astype(str), return_inverse=True)[1].astype(np.float64)
    with np.errstate(invalid="ignore"):
        numbers = array.astype(np.float64)
    # Infinities have no distance to each other.
    return np.nan_to_num(numbers, nan=np.nan, posinf=1e300, neginf=-1e300)
