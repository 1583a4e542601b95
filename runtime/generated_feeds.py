"""Makes up plausible inputs from shapes, dtypes and quantization ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.specs import Feed, TensorSpec, is_float, is_integer, numpy_type

DEFAULT_SAMPLES = 8

_SEQUENCE_LENGTH = 8
_IMAGE_SIDE = 64
_FEW = 2  # token ids, masks, class numbers: 0 and 1 are valid nearly everywhere
_WORDS = ("", "a", "onnx", "quantize", "é", "0", "true")


@dataclass(frozen=True)
class ValueRange:
    """Closed bounds for generated values.

    Attributes:
        low: Smallest value.
        high: Largest value.
    """

    low: float
    high: float


def input_ranges(model: ir.Model) -> dict[str, ValueRange]:
    """What the model itself says about its inputs' values.

    The range a QuantizeLinear can represent, all codes for what a DequantizeLinear reads, valid
    rows for the indices of a Gather on a constant.
    """
    found: dict[str, ValueRange] = {}
    for value in model.graph.inputs:
        for node, index in value.uses():
            known = _use_range(node, index)
            if known is not None and value.name:
                found[value.name] = known
                break
    return found


def generate_feed(
    inputs: Sequence[TensorSpec],
    rng: np.random.Generator,
    *,
    ranges: Mapping[str, ValueRange],
    dims: Mapping[str, int],
) -> Feed:
    """One feed: normal floats, small non-negative integers, booleans and words.

    Symbolic dimensions take their size from ``dims``; without, the first one is 1, the last two of
    four are 64, and others 8. The same name has the same size everywhere.

    Raises:
        UsageError: An input is not a dense tensor.
    """
    sizes = dict(dims)
    return {
        spec.name: _generate(spec, rng, ranges.get(spec.name), _shape(spec, sizes))
        for spec in inputs
    }


def _generate(
    spec: TensorSpec, rng: np.random.Generator, known: ValueRange | None, shape: tuple[int, ...]
) -> Array:
    if not isinstance(spec.dtype, np.dtype):
        raise UsageError(f"input '{spec.name}' ({spec}) cannot be generated; give data")
    if spec.dtype.kind == "O":
        words = rng.integers(0, len(_WORDS), shape)
        return np.array([_WORDS[i] for i in words.reshape(-1)], object).reshape(shape)
    if spec.dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape), np.bool_)
    if is_integer(spec.dtype):
        bounds = known or _integer_range(spec)
        return np.asarray(rng.integers(int(bounds.low), int(bounds.high) + 1, shape)).astype(
            spec.dtype
        )
    if not is_float(spec.dtype):
        raise UsageError(f"input '{spec.name}' ({spec}) cannot be generated; give data")
    values: Array = np.asarray(rng.standard_normal(shape))
    if known is not None:
        values = np.asarray(rng.uniform(known.low, known.high, shape))
    return values.astype(spec.dtype)


def _integer_range(spec: TensorSpec) -> ValueRange:
    # Eight-bit inputs are quantized data; wider integers count or index something.
    if str(spec.dtype) == "int8":
        return ValueRange(-128, 127)
    if str(spec.dtype) == "uint8":
        return ValueRange(0, 255)
    return ValueRange(0, _FEW - 1)


def _shape(spec: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    dims = spec.shape or ()
    return tuple(_size(dim, axis, len(dims), sizes) for axis, dim in enumerate(dims))


def _size(dim: int | str | None, axis: int, rank: int, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    size = _SEQUENCE_LENGTH
    if axis == 0:
        size = 1
    elif rank == 4 and axis >= 2:
        size = _IMAGE_SIDE
    return size if dim is None else sizes.setdefault(dim, size)


def _use_range(node: ir.Node, index: int) -> ValueRange | None:
    if node.op_type == "QuantizeLinear" and index == 0:
        return _quantizer_range(node)
    if node.op_type == "DequantizeLinear" and index == 0:
        return _codes_range(node.inputs[0])
    if node.op_type == "Gather" and index == 1:
        data = constant_array(node.inputs[0])
        attribute = node.attributes.get("axis")
        axis = 0 if attribute is None else attribute.as_int()
        return None if data is None else ValueRange(0, data.shape[axis] - 1)
    return None


def _codes_range(value: ir.Value | None) -> ValueRange | None:
    if value is None or value.dtype is None:
        return None
    low, high = _limits(value.dtype)
    return ValueRange(low, high) if math.isfinite(low) else None


def _quantizer_range(node: ir.Node) -> ValueRange | None:
    scale = constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.size != 1 or (zero is not None and zero.size != 1):
        return None
    point = 0 if zero is None else int(zero.astype(np.int64).item())
    output = ir.DataType.UINT8 if zero is None else ir.DataType.from_numpy(zero.dtype)
    low, high = _limits(output)
    step = float(scale.astype(np.float64).item())
    return ValueRange(step * (low - point), step * (high - point)) if math.isfinite(low) else None


def _limits(data_type: ir.DataType) -> tuple[float, float]:
    dtype = numpy_type(data_type)
    if not is_integer(dtype):
        return -math.inf, math.inf
    bits = data_type.bitwidth
    return (0, 2**bits - 1) if str(dtype)[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
