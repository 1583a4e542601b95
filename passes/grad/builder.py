"""Writes ordinary nodes in front of one node, and keeps the types of what it writes known.

Rules for gradients are formulas; this is the language they are written in::

    b.mul(call.gradient, b.op("Cos", call.x(0)))
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.grad.broadcasts import Broadcasts
from onnxfold.passes.grad.shapes import broadcast_axes, dtype_of, rank_of, same_dims, static_dims
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.type_inference import infer_node_types
from onnxfold.passes.walk import use_count

__all__ = ["Builder", "dtype_of", "rank_of", "same_dims", "static_dims"]

_SMALL = 1024
"""Elements of the largest constant that is written down instead of computed."""

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_NOT_SHARED = frozenset({"Bernoulli", "Dropout", "Identity", "Multinomial", "RandomNormalLike"})
"""Operators of which every node is another: random ones, and copies that are wanted."""

_Key: TypeAlias = "tuple[str, str, tuple[ir.Value | None, ...], tuple[tuple[str, object], ...]]"


class Builder:
    """Inserts nodes before ``anchor``.

    Equal constants and equal nodes are written once, and what nothing turns out to need is taken
    out at the end, so rules need not care.

    Attributes:
        rewriter: The gate; a step must be open.
        anchor: What everything is inserted in front of.
        prefix: Base of the names of new nodes.
    """

    def __init__(self, rewriter: Rewriter, anchor: ir.Node, prefix: str = "grad") -> None:
        self.rewriter = rewriter
        self.anchor = anchor
        self.prefix = prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._shared: dict[_Key, ir.Value] = {}
        self._written: dict[ir.Node, None] = {}
        self._broadcasts = Broadcasts()

    @contextmanager
    def named(self, prefix: str) -> Generator[None]:
        """Base the names of what is written in the block on ``prefix``."""
        outer, self.prefix = self.prefix, prefix
        try:
            yield
        finally:
            self.prefix = outer

    # Nodes

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        **attributes: AttributeValue,
    ) -> tuple[ir.Value, ...]:
        """The outputs of a new node that has several."""
        node = self.rewriter.insert_node(
            self.anchor,
            op_type,
            inputs,
            name=f"{self.prefix}_{op_type}",
            attributes=attributes,
            domain=domain,
            outputs=outputs,
        )
        self._written[node] = None
        self._infer(node)
        return tuple(node.outputs)

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        like: ir.Value | None = None,
        domain: str = "",
        **attributes: AttributeValue,
    ) -> ir.Value:
        """The output of a node that has one: a new node, or an equal one that was written.

        Args:
            op_type: The operator.
            inputs: Its inputs; None for an absent optional one.
            like: A value that has the type and shape of the result, where inference may not see it.
            domain: Operator domain.
            attributes: Attributes by name.
        """
        number = self._broadcasts.computed(op_type, inputs)
        if number is not None and inputs[0] is not None:
            return self.number(number, inputs[0])
        narrow, full = self._broadcasts.narrowed(op_type, inputs)
        result = self._broadcasts.unchanged(op_type, narrow)
        if result is None:
            result = self._equal_or_new(op_type, narrow, domain, attributes)
        if full is not None:
            return self.expand_like(result, full)
        if like is not None:
            self.assume_like(result, like)
        return result

    def output_of(self, node: ir.Node, index: int) -> ir.Value:
        """Output ``index`` of a node that is there already; asked for where it was left out."""
        output = self.rewriter.ask_for_output(node, index)
        if output.type is None:
            known = {each: (each.type, each.shape) for each in node.outputs}
            self._infer(node)
            for each, (dtype, shape) in known.items():
                each.type, each.shape = dtype or each.type, shape or each.shape
        return output

    def assume_like(self, value: ir.Value, like: ir.Value) -> None:
        """Note that ``value``, where it was written here, has the type and shape of ``like``."""
        if value.producer() not in self._written:
            return
        value.type = like.type or value.type
        value.shape = value.shape if like.shape is None else ir.Shape(like.shape)

    def erase_unused(self) -> None:
        """Take out the written nodes and constants that nothing reads."""
        for node in reversed(self._written):
            used = any(use_count(output) or output.is_graph_output() for output in node.outputs)
            if node.graph is not None and not used:
                self.rewriter.erase(node)
        for value in self._constants.values():
            if value.is_initializer() and not use_count(value) and not value.is_graph_output():
                self.rewriter.remove_initializer(value)

    def add(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """``left + right``."""
        return self.op("Add", left, right)

    def sub(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """``left - right``."""
        return self.op("Sub", left, right)

    def mul(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """``left * right``."""
        return self.op("Mul", left, right)

    def div(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """``left / right``."""
        return self.op("Div", left, right)

    def neg(self, value: ir.Value) -> ir.Value:
        """``-value``."""
        return self.op("Neg", value)

    def where(self, condition: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
        """``yes`` where ``condition`` holds, else ``no``."""
        return self.op("Where", condition, yes, no)

    def scale(self, value: ir.Value, factor: float) -> ir.Value:
        """``factor * value``."""
        return value if factor == 1 else self.mul(value, self.number(factor, value))

    def power(self, base: ir.Value, exponent: float) -> ir.Value:
        """``base`` to a constant power."""
        return self.op("Pow", base, self.number(exponent, base))

    def masked(self, condition: ir.Value, value: ir.Value) -> ir.Value:
        """``value``, which is finite, where ``condition`` holds, else 0; faster than ``where``."""
        return self.mul(value, self.cast(condition, dtype_of(value)))

    def is_zero(self, value: ir.Value) -> ir.Value:
        """Where ``value`` is 0."""
        return self.op("Equal", value, self.number(0, value))

    def divide_or_zero(self, dividend: ir.Value, divisor: ir.Value) -> ir.Value:
        """``dividend / divisor``, and 0 where ``divisor`` is 0; ``dividend`` is finite."""
        infinite = self.number(math.inf, divisor)
        return self.div(dividend, self.where(self.is_zero(divisor), infinite, divisor))

    def transpose(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        """``value`` with its dimensions in another order."""
        moved = value.producer()
        if moved is not None and moved.op_type == "Transpose" and moved.inputs[0] is not None:
            value = moved.inputs[0]
            before = moved.attributes.get("perm")
            axes = range(len(order))[::-1] if before is None else before.as_ints()
            order = [axes[axis] for axis in order]
        if list(order) == sorted(order):
            return value
        return self.op("Transpose", value, perm=tuple(order))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` as ``dtype``; itself where it is that already."""
        return value if value.dtype == dtype else self.op("Cast", value, to=int(dtype))

    # Constants

    def constant(self, array: npt.NDArray[Any]) -> ir.Value:
        """A constant; equal ones are shared."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}_constant"
            self._constants[key] = self.rewriter.constant(self.anchor, array, name=name)
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: int) -> ir.Value:
        """An int64 without dimensions."""
        return self.constant(np.array(value, np.int64))

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """A scalar of the element type of ``like``."""
        constant = self.constant(np.array(value, dtype_of(like).numpy()))
        return self._broadcasts.note_number(constant, value)

    # Shapes

    def shape(self, value: ir.Value) -> ir.Value:
        """The shape of ``value`` as a vector of int64: a constant where it is known."""
        dims = static_dims(value)
        return self.op("Shape", value) if dims is None else self.ints(*dims)

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """One dimension of ``value`` as a vector of one int64; ``axis`` counts from the front."""
        known = None if value.shape is None else value.shape[axis]
        if isinstance(known, int) and known >= 0:
            return self.ints(known)
        return self.op("Shape", value, start=axis, end=axis + 1)

    def reshape_like(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """``value``, which has as many elements, in the shape of ``like``."""
        while (moved := value.producer()) in self._written and moved.op_type in _RESHAPES:
            value = moved.inputs[0] or value
        if same_dims(value, like):
            return value
        return self.op("Reshape", value, self._reshape_target(like), like=like, allowzero=1)

    def expand_like(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """``value`` broadcast to the shape of ``like``."""
        if same_dims(value, like):
            return value
        full = self.op("Expand", value, self.shape(like), like=like)
        return self._broadcasts.note_expanded(full, value, like)

    def zeros_like(self, value: ir.Value) -> ir.Value:
        """Zeros of the shape and type of ``value``."""
        return self.full_like(value, 0.0)

    def full_like(self, value: ir.Value, number: float) -> ir.Value:
        """``number`` everywhere, in the shape and type of ``value``."""
        dims, dtype = static_dims(value), dtype_of(value).numpy()
        if dims is not None and math.prod(dims) <= _SMALL:
            found = self.constant(np.full(dims, number, dtype))
        else:
            one = ir.tensor(np.array([number], dtype))
            found = self.op("ConstantOfShape", self.shape(value), like=value, value=one)
        return self._broadcasts.note_number(found, number)

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """``value`` with dimensions of 1 at ``axes`` of the result."""
        number = self._broadcasts.number(value)
        if number is not None and value.shape is not None and not len(value.shape):
            ones = np.full((1,) * len(axes), number, dtype_of(value).numpy())
            return self._broadcasts.note_number(self.constant(ones), number)
        return self.op("Unsqueeze", value, self.ints(*axes)) if axes else value

    def reduce_sum(self, value: ir.Value, *axes: int, keepdims: bool = True) -> ir.Value:
        """The sum over ``axes``; ``value`` itself where there are none."""
        if not axes:
            return value
        return self.op("ReduceSum", value, self.ints(*axes), keepdims=int(keepdims))

    def sum_to(self, gradient: ir.Value, like: ir.Value) -> ir.Value:
        """Undo broadcasting: sum ``gradient`` down to the shape of ``like``.

        Where dimensions are not known to be equal, which axes are summed is decided at run time.
        """
        if same_dims(gradient, like):
            return gradient
        axes = broadcast_axes(gradient, like)
        if axes is None:
            return self._sum_to_at_run_time(gradient, like)
        added = rank_of(gradient) - rank_of(like)
        if axes == list(range(added)):
            return self.reduce_sum(gradient, *axes, keepdims=False)
        return self.reshape_like(self.reduce_sum(gradient, *axes), like)

    # Internals

    def _equal_or_new(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        domain: str,
        attributes: Mapping[str, AttributeValue],
    ) -> ir.Value:
        key = _key(op_type, inputs, domain, attributes)
        known = None if key is None else self._shared.get(key)
        if known is not None:
            return known
        (result,) = self.nodes(op_type, inputs, 1, domain=domain, **attributes)
        if key is not None:
            self._shared[key] = result
        return result

    def _sum_to_at_run_time(self, gradient: ir.Value, like: ir.Value) -> ir.Value:
        target, full = self.shape(like), self.shape(gradient)
        one = self.ints(1)
        missing = self.sub(self.op("Shape", full), self.op("Shape", target))
        padded = self.op("Concat", self.op("Expand", one, missing), target, axis=0)
        # An axis of 1 that was 1 before broadcasting too is summed in vain, and rightly.
        axes = self.op("Squeeze", self.op("NonZero", self.op("Equal", padded, one)), self.ints(0))
        summed = self.op("ReduceSum", gradient, axes, keepdims=1, noop_with_empty_axes=1)
        return self.op("Reshape", summed, target, like=like, allowzero=1)

    def _reshape_target(self, like: ir.Value) -> ir.Value:
        dims = [] if like.shape is None else list(like.shape)
        unknown = [index for index, dim in enumerate(dims) if not isinstance(dim, int)]
        if len(unknown) != 1 or 0 in dims:
            return self.shape(like)
        return self.ints(*(dim if isinstance(dim, int) else -1 for dim in dims))

    def _infer(self, node: ir.Node) -> None:
        model = self.rewriter.model
        infer_node_types(node, model.opset_imports, model.ir_version or 1)
        if node.op_type == "Split" and node.inputs[0] is not None:
            _give_rank(node.outputs, node.inputs[0])


def _key(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    domain: str,
    attributes: Mapping[str, AttributeValue],
) -> _Key | None:
    """What equal nodes have in common; None where a node is never equal to another."""
    if op_type in _NOT_SHARED:
        return None
    settings: list[tuple[str, object]] = []
    for name, value in sorted(attributes.items()):
        if isinstance(value, (int, float, str)):
            settings.append((name, value))
        elif isinstance(value, (list, tuple)):
            settings.append((name, tuple(value)))
        else:
            return None
    return domain, op_type, tuple(inputs), tuple(settings)


def _give_rank(parts: Sequence[ir.Value], whole: ir.Value) -> None:
    """Note the rank of the outputs of Split; inference gives up where sizes are computed."""
    for part in parts:
        if part.shape is None and whole.shape is not None:
            part.shape = ir.Shape([None] * len(whole.shape))
