"""What callers of a model rely on: the names, order, types and shapes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

Dim = int | str | None


@dataclass(frozen=True)
class InterfaceValue:
    """One input or output as it was declared.

    Attributes:
        name: Its name.
        type: ``FLOAT``, ``Sequence(Tensor(INT64))`` ...; None where undeclared.
        shape: A size, the name of a symbolic dimension, or None for each dimension; None as a
            whole where the rank is not declared.
    """

    name: str
    type: str | None
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        """``x: FLOAT[N,3]``, for messages."""
        if self.shape is None:
            return f"{self.name}: {self.type}"
        dims = ",".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.type}[{dims}]"

    def allows(self, other: InterfaceValue) -> bool:
        """Whether ``other`` can stand in its place: what was not declared may become known."""
        if self.name != other.name or self.type not in (None, other.type):
            return False
        if self.shape is None:
            return True
        if other.shape is None or len(self.shape) != len(other.shape):
            return False
        pairs = zip(self.shape, other.shape, strict=True)
        return all(declared is None or declared == found for declared, found in pairs)


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[InterfaceValue, ...]
    outputs: tuple[InterfaceValue, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """A snapshot of the interface of ``model``."""
        return cls(_values(model.graph.inputs), _values(model.graph.outputs))

    def difference(self, other: Interface, *, additive: bool = False) -> str:
        """How ``other`` breaks this interface, in words; empty where it does not.

        Args:
            other: The interface after a rewrite.
            additive: Whether inputs and outputs may be appended.
        """
        return _difference("input", self.inputs, other.inputs, additive) or _difference(
            "output", self.outputs, other.outputs, additive
        )


def _difference(
    kind: str,
    before: tuple[InterfaceValue, ...],
    after: tuple[InterfaceValue, ...],
    additive: bool,
) -> str:
    for index, declared in enumerate(before):
        if index >= len(after):
            return f"{kind} '{declared.name}' is gone"
        if not declared.allows(after[index]):
            return f"{kind} {index} was {declared} and is {after[index]}"
    if len(after) > len(before) and not additive:
        return f"{kind} '{after[len(before)].name}' was added"
    return ""


def _values(values: Iterable[ir.Value]) -> tuple[InterfaceValue, ...]:
    return tuple(
        InterfaceValue(
            value.name or "",
            None if value.type is None else str(value.type),
            None if value.shape is None else tuple(_dim(dim) for dim in value.shape),
        )
        for value in values
    )


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    return dim if isinstance(dim, int) else dim.value
