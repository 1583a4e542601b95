"""What a rule for a gradient is: the vector-Jacobian product of one operator, and their table.

A rule is told the gradients of a node's outputs and returns those of its inputs::

    @vjp("Sin")
    def sin(call: Call, b: Builder) -> Gradients:
        return (b.mul(call.gradient, b.op("Cos", call.x(0))),)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.walk import label

Gradients: TypeAlias = "Sequence[ir.Value | None]"
"""One gradient an input, in order; None, or nothing at the end, where none flows."""


class Differentiates(Protocol):
    """What a rule asks for the gradients of bodies (``passes.grad.differentiate``).

    Attributes:
        normalize_steps: Whether gradients of quantization scales are normalized.
    """

    normalize_steps: bool

    def gradients(
        self,
        builder: Builder,
        seeds: Mapping[ir.Value, ir.Value],
        wrt: Sequence[ir.Value],
        *,
        until: Sequence[ir.Value] = (),
    ) -> list[ir.Value | None]:
        """The gradients of ``wrt``, given those of the values that ``seeds`` maps."""
        ...

    def refusal(self, node: ir.Node, reason: str) -> UsageError:
        """The error that says why ``node`` cannot be differentiated."""
        ...


@dataclass
class Call:
    """One node whose inputs' gradients are wanted.

    Attributes:
        node: The node.
        gradients: The gradient of each output; None where none flows back.
        needed: Whether the gradient of each input is wanted.
        opset: The version of the node's domain that it is read under.
        differentiator: What differentiates bodies and function bodies.
        captured: Values of outer graphs that the node's bodies read, and whose gradients are
            wanted; the rule gives them to ``flow``.
        flows: What ``flow`` was given.
    """

    node: ir.Node
    gradients: tuple[ir.Value | None, ...]
    needed: tuple[bool, ...]
    opset: int
    differentiator: Differentiates
    captured: tuple[ir.Value, ...] = ()
    flows: list[tuple[ir.Value, ir.Value]] = field(default_factory=list[tuple[ir.Value, ir.Value]])

    @property
    def gradient(self) -> ir.Value:
        """The gradient of the first output.

        Raises:
            UsageError: None flows back into it: only other outputs are used.
        """
        found = self.gradients[0]
        if found is None:
            raise self.refusal("only its further outputs reach the loss")
        return found

    def x(self, index: int) -> ir.Value:
        """Input ``index``, which is there."""
        value = self.node.inputs[index]
        if value is None:
            raise self.refusal(f"its input {index} is absent")
        return value

    def optional(self, index: int) -> ir.Value | None:
        """Input ``index``; None where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def y(self, index: int = 0) -> ir.Value:
        """Output ``index``."""
        return self.node.outputs[index]

    def flow(self, value: ir.Value, gradient: ir.Value) -> None:
        """Add ``gradient`` to that of ``value``, which a body of the node reads."""
        self.flows.append((value, gradient))

    def int(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def float(self, name: str, default: float) -> float:
        """A number attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def string(self, name: str, default: str) -> str:
        """A text attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def ints(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of integers; None where it is absent."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else tuple(attribute.as_ints())

    def constant_ints(self, index: int) -> tuple[int, ...] | None:
        """The integers of input ``index`` where they are a constant; None where it is absent.

        Raises:
            UsageError: They are computed at run time.
        """
        value = self.optional(index)
        if value is None:
            return None
        known = constant_ints(value)
        if known is None:
            raise self.refusal(f"its input '{value.name}' is not a constant")
        return known

    def refusal(self, reason: str) -> UsageError:
        """The error that says why this node cannot be differentiated."""
        return self.differentiator.refusal(self.node, reason)


VjpFunction: TypeAlias = Callable[[Call, Builder], Gradients]
VJPS: dict[str, VjpFunction] = {}
"""The rule of each operator; ``domain::Op`` outside ai.onnx. Filled by ``passes.grad.rules``."""


def vjp(*op_types: str) -> Callable[[VjpFunction], VjpFunction]:
    """Make a function the rule of the given operators.

    Raises:
        ValueError: One of them has a rule already.
    """

    def register(function: VjpFunction) -> VjpFunction:
        for op_type in op_types:
            if op_type in VJPS:
                raise ValueError(f"two rules for the gradient of {op_type}")
            VJPS[op_type] = function
        return function

    return register


FLAT: frozenset[str] = frozenset(
    {
        "And",
        "ArgMax",
        "ArgMin",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Ceil",
        "Constant",
        "ConstantOfShape",
        "DynamicQuantizeLinear",
        "Equal",
        "EyeLike",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "Multinomial",
        "NonMaxSuppression",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
        "Round",
        "Shape",
        "Sign",
        "Size",
        "Xor",
    }
)
"""Operators through which no gradient flows: it is zero wherever it is defined."""


NO_GRADIENT: Mapping[str, str] = {
    "MaxRoiPool": "it does not tell where its maxima were; RoiAlign has a gradient",
    "SequenceAt": "gradients do not flow through sequences; unroll them into tensors",
    "SplitToSequence": "gradients do not flow through sequences; use Split",
    "ConcatFromSequence": "gradients do not flow through sequences; use Concat",
    "SequenceConstruct": "gradients do not flow through sequences; use tensors",
    "SequenceInsert": "gradients do not flow through sequences; use tensors",
    "SequenceMap": "gradients do not flow through sequences; use Scan",
    "Optional": "gradients do not flow through optional values",
    "OptionalGetElement": "gradients do not flow through optional values",
}
"""Operators that cannot be differentiated, and what to do instead."""


def key_of(node: ir.Node) -> str:
    """The name that ``node``'s operator has in the table."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def describe_path(nodes: Sequence[ir.Node]) -> str:
    """A path of nodes in words: the ends, and how many lie between."""
    names = [label(node) for node in nodes]
    if len(names) <= 5:
        return " -> ".join(names)
    return " -> ".join([*names[:2], f"({len(names) - 4} more)", *names[-2:]])
