"""Writing integer graphs: codes, their constants, and the way back to real numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Operand
from onnxfold.passes.fold.types import DEQUANTIZE, QUANTIZE, TypeState, is_wide
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.rewriter import Rewriter

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_DIGEST_BYTES = 32
_WIDE_OPSET = 21


class Builder:
    """Inserts nodes before an anchor and remembers which value holds the codes of which.

    Attributes:
        rewriter: The gate.
        types: The affine types.
        codes: For each original value: the value that holds its codes.
        anchor: The node before which everything is inserted.
        names: The values that were inserted, and the bases of their names, in order.
        halves: For 16-bit codes, in each graph: their upper and lower bytes.
        reals: For codes that stand for real numbers without rounding them: those numbers.
    """

    def __init__(self, rewriter: Rewriter, types: TypeState) -> None:
        self.rewriter = rewriter
        self.types = types
        self.codes: dict[ir.Value, ir.Value] = {}
        self.reals: dict[tuple[ir.Value, AffineType], ir.Value] = {}
        self.halves: dict[tuple[object, ir.Value], tuple[ir.Value, ir.Value]] = {}
        self.names: dict[ir.Value, str] = {}
        self.anchor: ir.Node
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._parameters: dict[tuple[object, AffineType], tuple[ir.Value, ir.Value]] = {}

    def insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        dtype: ir.DataType,
        *,
        attributes: Mapping[str, AttributeValue] | None = None,
        domain: str = "",
        shape: ir.Shape | Sequence[int | str | None] | Literal["like"] | None = "like",
    ) -> ir.Value:
        """Insert an op with one output, named after ``like``, and shaped like it unless told.

        A ``shape`` of None is not known.
        """
        name = f"{like.name}_{op_type.lower()}"
        value = self.rewriter.insert(
            self.anchor,
            op_type,
            inputs,
            name=name,
            attributes=attributes,
            domain=domain,
            dtype=dtype,
            shape=like.shape if shape == "like" else shape,
        )
        self.names[value] = name
        return value

    def constant(self, array: Array, name: str) -> ir.Value:
        """A constant; equal ones are one value in each graph."""
        key = (self.anchor.graph, str(array.dtype), array.shape, _content(array))
        if key not in self._constants:
            self._constants[key] = self.rewriter.constant(self.anchor, array, name=name)
            self.names[self._constants[key]] = name
        return self._constants[key]

    def scale(self, affine: AffineType) -> ir.Value:
        """The scale of ``affine`` as a constant."""
        return self.constant(affine.scale, "scale")

    def zero_point(self, affine: AffineType) -> ir.Value:
        """The zero point of ``affine`` as a constant."""
        return self.constant(affine.zero_point.astype(affine.dtype.numpy()), "zero_point")

    def parameters(self, affine: AffineType) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point as constants."""
        key = (self.anchor.graph, affine)
        if key not in self._parameters:
            self._parameters[key] = self.scale(affine), self.zero_point(affine)
        return self._parameters[key]

    def available(self, value: ir.Value) -> bool:
        """Whether the codes of ``value`` exist by now."""
        known = self.types.get(value)
        return value in self.codes or (known is not None and known.codes is not None)

    def codes_of(self, value: ir.Value) -> ir.Value:
        """The codes of ``value``."""
        if value in self.codes:
            return self.codes[value]
        known = self.types.get(value)
        assert known is not None
        assert known.codes is not None
        return self.constant(known.codes, f"{value.name}_codes")

    def operand(self, operand: Operand, name: str) -> ir.Value:
        """The codes of an operand."""
        if operand.value is not None:
            return self.codes_of(operand.value)
        if operand.real is not None:
            return self.quantize(operand.real, operand.type, operand.real)
        assert operand.codes is not None
        return self.constant(np.asarray(operand.codes, order="C"), f"{name}_codes")

    def quantize(self, real: ir.Value, affine: AffineType, like: ir.Value) -> ir.Value:
        """QuantizeLinear of ``real``."""
        inputs = [real, *self.parameters(affine)]
        return self.insert(QUANTIZE, inputs, like, affine.dtype, domain=self._domain(affine))

    def _domain(self, affine: AffineType) -> str:
        """That of the Q and DQ that know the type: of 16 bits, those of ai.onnx do since 21."""
        old = self.rewriter.opset(self.anchor) < _WIDE_OPSET
        return CONTRIB if old and is_wide(affine) else ""

    def dequantize(self, codes: ir.Value, affine: AffineType, like: ir.Value) -> ir.Value:
        """DequantizeLinear of ``codes``; of int32 it takes no zero point."""
        wide = affine.dtype == ir.DataType.INT32
        inputs = [codes, self.scale(affine)] if wide else [codes, *self.parameters(affine)]
        axis = None if affine.axis is None else {"axis": affine.axis}
        return self.insert(
            DEQUANTIZE,
            inputs,
            like,
            ir.DataType.FLOAT,
            attributes=axis,
            domain=self._domain(affine),
            shape=codes.shape,
        )

    def dequantize_unfused(self, codes: ir.Value, affine: AffineType, like: ir.Value) -> ir.Value:
        """The same numbers as ``dequantize``, in a form that ONNX Runtime does not fuse."""
        shape = codes.shape
        real = self.insert(
            "Cast",
            [codes],
            like,
            ir.DataType.FLOAT,
            attributes={"to": int(ir.DataType.FLOAT)},
            shape=shape,
        )
        if not affine.symmetric:
            zero = self.constant(affine.zero_point.astype(np.float32), "zero_point_real")
            real = self.insert("Sub", [real, zero], like, ir.DataType.FLOAT, shape=shape)
        return self.insert("Mul", [real, self.scale(affine)], like, ir.DataType.FLOAT, shape=shape)


def _content(array: Array) -> bytes:
    """The bytes of ``array``, or of what is large a digest: to keep them is to hold it twice."""
    data = array.tobytes()
    short = len(data) <= _DIGEST_BYTES
    return data if short else hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
