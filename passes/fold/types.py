"""The propagation state: which values have integer codes, of what affine type, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS, AffineType
from onnxfold.passes.constants import Array, constant_array, constant_tensor
from onnxfold.passes.fold.unrounded import FunctionOf, SumOf

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
CODE_TYPES = (ir.DataType.UINT8, ir.DataType.INT8)
"""The types of activation codes that integer kernels take."""
WIDE_CODE_TYPES = (ir.DataType.UINT16, ir.DataType.INT16)
"""The types that some targets compute with in halves of 8 bits."""

_QDQ_DOMAINS = ("", "com.microsoft")
_RECODING_SHIFT = 128  # int8 codes + 128 are uint8 codes of the same real numbers
_NARROW = {
    ir.DataType.INT2: ir.DataType.INT8,
    ir.DataType.INT4: ir.DataType.INT8,
    ir.DataType.UINT2: ir.DataType.UINT8,
    ir.DataType.UINT4: ir.DataType.UINT8,
}
"""Types narrower than 8 bits, and the type their codes are computed with."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What is known of a value that has codes.

    Attributes:
        type: How its codes stand for real numbers.
        codes: The codes themselves, where they are known at compile time.
    """

    type: AffineType
    codes: Array | None = None


class TypeState:
    """Affine types of values; equal types are one object, so that ``is`` compares them.

    Attributes:
        recode: Whether int8 activations are held as uint8 (zero point + 128).
        wide: Whether activations may have 16 bits.
        wants: For a value all of whose readers quantize it alike: that type.
        code_dtypes: For values that are codes themselves (not reals), their type as written.
        moved: Codes of integer constants behind Transpose, Reshape and the like.
        bounds: The smallest and the largest code, where a Clip leaves fewer than the type has.
        functions: What a value is a function of, element by element; the nearest source first.
        sums: The weighted sum that a value is.
        residuals: For an int32 accumulator: the bias that is to be added to its real numbers
            (float64, broadcastable), where that falls between its codes.
        reaches: For an int32 accumulator: its largest magnitude.
    """

    def __init__(self, *, recode: bool, wide: bool = False) -> None:
        self.recode = recode
        self.wide = wide
        self.wants: dict[ir.Value, AffineType] = {}
        self.code_dtypes: dict[ir.Value, ir.DataType] = {}
        self.moved: dict[ir.Value, Array] = {}
        self.bounds: dict[ir.Value, tuple[int, int]] = {}
        self.functions: dict[ir.Value, tuple[FunctionOf, ...]] = {}
        self.sums: dict[ir.Value, SumOf] = {}
        self.residuals: dict[ir.Value, Array] = {}
        self.reaches: dict[ir.Value, int] = {}
        self._known: dict[ir.Value, Quantized] = {}
        self._reasons: dict[ir.Value, str] = {}
        self._interned: dict[tuple[object, ...], AffineType] = {}
        self._parameters: dict[tuple[object, ...], AffineType | None] = {}

    def get(self, value: ir.Value | None) -> Quantized | None:
        """What is known of the codes of ``value``; None where it has none."""
        return None if value is None else self._known.get(value)

    def put(self, value: ir.Value, quantized: Quantized) -> None:
        """Record that ``value`` has codes."""
        self._known[value] = quantized

    def forget(self, values: Sequence[ir.Value]) -> None:
        """Take back what was recorded of ``values``: they are computed as real numbers."""
        for value in values:
            self._known.pop(value, None)

    def activation(self, value: ir.Value | None) -> AffineType | None:
        """The type of ``value`` if activations may have it."""
        known = self.get(value)
        return known.type if known is not None and self.takes(known.type) else None

    def takes(self, affine: AffineType) -> bool:
        """Whether activations may have this type: per tensor, of 8 bits, of 16 where ``wide``."""
        if self.wide and is_wide(affine):
            return affine.per_tensor
        return is_activation_type(affine)

    def accumulator(self, value: ir.Value | None) -> AffineType | None:
        """The type of ``value`` if its codes are the int32 sums of a product."""
        known = self.get(value)
        return known.type if known is not None and known.type.dtype == ir.DataType.INT32 else None

    def follow_accumulator(self, value: ir.Value, copy: ir.Value) -> None:
        """Record of ``copy`` what is known of ``value`` as an int32 accumulator, if it is one."""
        if value in self.reaches:
            self.reaches[copy] = self.reaches[value]
        if value in self.residuals:
            self.residuals[copy] = self.residuals[value]

    def want(self, value: ir.Value) -> AffineType | None:
        """The type every reader of ``value`` quantizes it to; None where they do not agree."""
        return self.wants.get(value)

    def refuse(self, value: ir.Value, reason: str) -> None:
        """Remember why ``value``, though dequantized, has no codes to compute with."""
        self._reasons[value] = reason

    def reason(self, value: ir.Value | None) -> str:
        """Why ``value`` has no codes, as a clause."""
        if value is None:
            return "an input is absent"
        return self._reasons.get(value, f"'{value.name}' is not quantized")

    def intern(self, affine: AffineType) -> AffineType:
        """The one object that stands for all types equal to ``affine``."""
        key = (affine.dtype, affine.axis, affine.scale.tobytes(), affine.zero_point.tobytes())
        return self._interned.setdefault(key, affine)

    def rescaled(self, affine: AffineType, factor: float) -> AffineType:
        """The type in which the codes of ``affine`` stand for reals ``factor`` times as large."""
        scale = np.asarray(affine.scale.astype(np.float64) * factor, dtype=np.float32)
        return self.intern(AffineType(scale, affine.zero_point, affine.dtype, affine.axis))

    def internal(self, affine: AffineType) -> AffineType:
        """The type its codes are held in: uint8 instead of int8 where the target recodes."""
        if not (self.recode and affine.dtype == ir.DataType.INT8):
            return self.intern(affine)
        shifted = (affine.zero_point.astype(np.int64) + _RECODING_SHIFT).astype(np.uint8)
        return self.intern(AffineType(affine.scale, shifted, ir.DataType.UINT8, affine.axis))

    def internal_codes(self, codes: Array, dtype: ir.DataType) -> Array:
        """Constant codes of ``dtype``, as codes of the internal type."""
        if not (self.recode and dtype == ir.DataType.INT8):
            return codes
        return (codes.astype(np.int64) + _RECODING_SHIFT).astype(np.uint8)

    def parameters(self, node: ir.Node) -> AffineType | None:
        """The type a QuantizeLinear or DequantizeLinear converts to or from, as written.

        None where it is not constant, not float32, blocked, or of no supported integer type.
        """
        if is_parametric(node):
            return None
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        dtype = _code_type(node, zero_point)
        axis = node.attributes.get_int("axis", 1)
        rank = _rank(node)
        key = (node.inputs[1], zero_point, dtype, axis, rank, _blocked(node))
        if key not in self._parameters:
            affine = (
                None if _blocked(node) else _read(node.inputs[1], zero_point, dtype, axis, rank)
            )
            self._parameters[key] = None if affine is None else self.intern(affine)
        return self._parameters[key]


def is_parametric(node: ir.Node) -> bool:
    """Whether an attribute of ``node`` is a parameter of the local function it is in."""
    return any(attribute.is_ref() for attribute in node.attributes.data.values())


def is_activation_type(affine: AffineType) -> bool:
    """Whether integer kernels take activations of this type."""
    return affine.per_tensor and affine.dtype in CODE_TYPES


def is_wide(affine: AffineType) -> bool:
    """Whether codes of this type have 16 bits."""
    return affine.dtype in WIDE_CODE_TYPES


def is_quantize(node: ir.Node) -> bool:
    """Whether ``node`` is a QuantizeLinear."""
    return node.op_type == QUANTIZE and node.domain in _QDQ_DOMAINS


def is_dequantize(node: ir.Node) -> bool:
    """Whether ``node`` is a DequantizeLinear."""
    return node.op_type == DEQUANTIZE and node.domain in _QDQ_DOMAINS


def widened(codes: Array, dtype: ir.DataType) -> Array:
    """Codes narrower than 8 bits as int8 or uint8 codes of the same value."""
    if dtype not in _NARROW:
        return codes
    return codes.astype(_NARROW[dtype].numpy())


def _code_type(node: ir.Node, zero_point: ir.Value | None) -> ir.DataType | None:
    if zero_point is not None:
        tensor = None if zero_point.dtype is not None else constant_tensor(zero_point)
        return zero_point.dtype if tensor is None else tensor.dtype
    if is_quantize(node):
        return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    source = node.inputs[0]
    if source is None:
        return None
    producer = source.producer()
    if source.dtype is None and producer is not None and is_quantize(producer):
        return _code_type(producer, producer.inputs[2] if len(producer.inputs) > 2 else None)
    # Values of a local function have no types, but its constants have.
    tensor = None if source.dtype is not None else constant_tensor(source)
    return source.dtype if tensor is None else tensor.dtype


def _rank(node: ir.Node) -> int | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    return len(source.shape)


def _blocked(node: ir.Node) -> bool:
    return node.attributes.get_int("block_size", 0) != 0


def _read(
    scale_value: ir.Value | None,
    zero_value: ir.Value | None,
    dtype: ir.DataType | None,
    axis: int,
    rank: int | None,
) -> AffineType | None:
    scale = constant_array(scale_value)
    if scale is None or dtype is None or scale.dtype != np.float32 or scale.ndim > 1:
        return None
    if dtype not in INTEGER_LIMITS and dtype not in _NARROW:
        return None
    if not bool(np.all(np.isfinite(scale) & (scale > 0))):
        return None
    zero_point = _zero_point(zero_value, scale, dtype)
    if zero_point is None or zero_point.size != scale.size:
        return None
    if dtype in _NARROW:
        zero_point = widened(zero_point, dtype)
        dtype = _NARROW[dtype]
    if scale.size == 1:
        return AffineType(scale.reshape(()), zero_point.reshape(()), dtype)
    if axis < 0 and rank is None:
        return None
    return AffineType(
        scale, zero_point.reshape(-1), dtype, axis + (rank or 0) if axis < 0 else axis
    )


def _zero_point(value: ir.Value | None, scale: Array, dtype: ir.DataType) -> Array | None:
    if value is None:
        return np.zeros(scale.shape, _NARROW.get(dtype, dtype).numpy())
    return constant_array(value)
