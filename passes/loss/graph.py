"""The graph that a loss function builds: an onnx-graphsurgeon graph, and arithmetic on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.surgeon import GsGraph, built_proto, new_constant, new_graph, new_variable

Variable: TypeAlias = Any
"""``onnx_graphsurgeon.Variable``, which ships no types."""

Dims: TypeAlias = tuple[int | str | None, ...]
"""A shape: sizes, names of dynamic sizes, and None where nothing is known."""

_AXES_ARE_AN_INPUT = {"ReduceSum": 13}  # 18 for the other reductions


class LossGraph:
    """What a loss function is given first.

    ``graph.graph`` is the ``onnx_graphsurgeon.Graph`` itself and ``graph.layer`` its ``layer``;
    the other methods save typing. Floating-point numbers become constants of the loss's dtype.

    Attributes:
        graph: The ``onnx_graphsurgeon.Graph``.
        opset: The opset of the default domain that the loss is built for.
        dtype: What the loss is computed in: float32 or float64.
    """

    def __init__(self, name: str, opset: int, dtype: ir.DataType) -> None:
        self.graph: GsGraph = new_graph(name, opset)
        self.opset = opset
        self.dtype = dtype
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Variable] = {}

    def layer(
        self, op: str, inputs: Sequence[Any], outputs: Sequence[Any], **details: Any
    ) -> list[Variable]:
        """As ``onnx_graphsurgeon.Graph.layer``; names in ``outputs`` are made unique."""
        return self.graph.layer(op=op, inputs=list(inputs), outputs=list(outputs), **details)

    def op(self, op: str, *inputs: Any, **attributes: Any) -> Variable:
        """The only output of a new node.

        Args:
            op: The operator.
            *inputs: Variables; floats, which become constants of the loss's dtype; integers and
                lists of integers, which become int64 constants; arrays; None for one left out.
            **attributes: The node's attributes.
        """
        values = [each if self.is_tensor(each) else self._literal(each) for each in inputs]
        return self.layer(op, values, [op.lower()], attrs=attributes)[0]

    def constant(self, value: npt.ArrayLike, dtype: ir.DataType | None = None) -> Variable:
        """A constant, of the loss's dtype where ``dtype`` is left out; equal ones are shared."""
        array: Array = np.asarray(value, (dtype or self.dtype).numpy())
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = new_constant(name, array)
        return self._constants[key]

    def data_input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str | None]) -> Any:
        """A new input that the user feeds, such as labels.

        Raises:
            UsageError: There is an input of that name.
        """
        if any(each.name == name for each in self.graph.inputs):
            raise UsageError(f"loss {self.graph.name} takes the input '{name}' twice")
        variable = new_variable(name, int(dtype), shape)
        self.graph.inputs.append(variable)
        return variable

    def reduce(
        self, op: str, x: Variable, axes: Sequence[int] | None = None, *, keepdims: bool = False
    ) -> Variable:
        """``ReduceSum``, ``ReduceMean`` and so on over ``axes``, or over all of them."""
        attributes: dict[str, Any] = {"keepdims": int(keepdims)}
        if axes is None:
            return self.op(op, x, **attributes)
        if self.opset >= _AXES_ARE_AN_INPUT.get(op, 18):
            return self.op(op, x, list(axes), **attributes)
        return self.op(op, x, axes=list(axes), **attributes)

    def cast(self, x: Variable, dtype: ir.DataType | None = None) -> Variable:
        """``x`` as ``dtype``, or as the loss's dtype."""
        return self.op("Cast", x, to=int(dtype or self.dtype))

    def size(self, x: Variable, axis: int) -> Variable:
        """How long an axis is, as an int64 scalar: a constant where it is known."""
        size = x.shape[axis] if x.shape is not None else None
        if isinstance(size, int):
            return self.constant(size, ir.DataType.INT64)
        return self.op("Gather", self.op("Shape", x), axis)

    def built(self, output: Variable, name: str) -> onnx.ModelProto:
        """What was built so far, with ``output`` as its only output, called ``name``."""
        named = output if output.inputs else self.op("Identity", output)
        named.name = name
        self.graph.outputs = [named]
        return built_proto(self.graph)

    @staticmethod
    def is_tensor(value: object) -> bool:
        """Whether ``value`` is a variable or a constant of graphsurgeon's."""
        return hasattr(value, "is_empty")

    def _literal(self, value: Any) -> Any:
        if value is None:
            return new_variable("", 0, ())
        if isinstance(value, float):
            return self.constant(value)
        if isinstance(value, np.ndarray):
            array = cast(Array, value)
            return self.constant(array, ir.DataType.from_numpy(array.dtype))
        return self.constant(value, ir.DataType.INT64)
