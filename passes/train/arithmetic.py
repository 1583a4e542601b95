"""Emits element-wise arithmetic on tensors and scalars, node after node."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxfold.passes.errors import InvalidModelError
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.rewriter import Rewriter


class Arithmetic:
    """Inserts standard operators before a node, or after it, each behind the one before.

    Python numbers among operands become constants of the dtype of the tensors beside them, one for
    each number and dtype.
    """

    def __init__(self, rewriter: Rewriter, anchor: ir.Node, *, after: bool = False) -> None:
        self._rewriter = rewriter
        self._anchor = anchor
        self._after = after
        self._numbers: dict[tuple[float, ir.DataType], ir.Value] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def call(
        self,
        op_type: str,
        *operands: ir.Value | float,
        name: str,
        attributes: Mapping[str, AttributeValue] | None = None,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
    ) -> ir.Value:
        """Insert an operator that broadcasts scalars, and return its output.

        Args:
            op_type: The operator.
            operands: Tensors of one shape and dtype, scalars of that dtype, and numbers.
            name: Base of the name of the node and its output.
            attributes: Its attributes.
            dtype: What it returns, where not the dtype of its operands.
            shape: What it returns, where not the shape of its operands.

        Raises:
            InvalidModelError: The dtype of no operand is known.
        """
        tensors = [each for each in operands if isinstance(each, ir.Value)]
        known = dtype_of(tensors)
        values = [
            each if isinstance(each, ir.Value) else self._number(each, known) for each in operands
        ]
        if shape is None:
            shape = next((each.shape for each in tensors if each.shape), ir.Shape(()))
        node = self._rewriter.insert_node(
            self._anchor, op_type, values, name=name, attributes=attributes, after=self._after
        )
        if self._after:
            self._anchor = node
        # An operand of unknown shape may be larger than all others.
        known_shape = all(each.shape is not None for each in tensors)
        self._rewriter.set_type(node.outputs[0], dtype or known, shape if known_shape else None)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` as ``dtype``; the same node where that was asked for before."""
        if value.dtype == dtype:
            return value
        key = value, dtype
        if key not in self._casts:
            self._casts[key] = self.call(
                "Cast",
                value,
                name=f"{value.name}_as_{dtype.name.lower()}",
                attributes={"to": int(dtype)},
                dtype=dtype,
            )
        return self._casts[key]

    def where(
        self, condition: ir.Value, yes: float, no: float, *, dtype: ir.DataType, name: str
    ) -> ir.Value:
        """One of two numbers, by a condition on scalars."""
        numbers = [self._number(each, dtype) for each in (yes, no)]
        return self.call("Where", condition, *numbers, name=name, dtype=dtype)

    def select(self, condition: ir.Value, yes: ir.Value, no: ir.Value, *, name: str) -> ir.Value:
        """One of two scalars of one dtype, by a condition on scalars."""
        return self.call("Where", condition, yes, no, name=name, dtype=dtype_of([yes]))

    def _number(self, number: float, dtype: ir.DataType) -> ir.Value:
        key = number, dtype
        if key not in self._numbers:
            self._numbers[key] = self._rewriter.constant(
                self._anchor, np.array(number, dtype.numpy()), name="number"
            )
        return self._numbers[key]


def dtype_of(values: list[ir.Value]) -> ir.DataType:
    """The dtype that all of ``values`` have, known of at least one.

    Raises:
        InvalidModelError: It is known of none.
    """
    for value in values:
        if value.dtype is not None:
            return value.dtype
    name = values[0].name if values else ""
    raise InvalidModelError(f"the type of '{name}' is not known: run infer-shapes first")
