"""What a node looks like when it computes on transposed tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.layouts.permutation import Permutation
from onnxfold.passes.literals import AttributeValue


@dataclass(frozen=True)
class Known:
    """The layout that is known of one operand or result, from which the others follow.

    Attributes:
        layout: The layout.
        index: Which operand or result.
        is_output: Whether it is a result.
    """

    layout: Permutation
    index: int = 0
    is_output: bool = False


@dataclass(frozen=True)
class NewConstant:
    """A constant that another node reads instead of the one it has at ``index``."""

    node: ir.Node
    index: int
    array: Array


@dataclass(frozen=True)
class Carry:
    """A node on transposed tensors.

    Attributes:
        inputs: The layout of each operand that is not constant, by index; what is not named is
            read as it is.
        outputs: The layout of each result.
        attributes: Attributes that change.
        constants: Operands that become other constants, by index.
        elsewhere: Constants of other nodes that change with it.
    """

    inputs: Mapping[int, Permutation]
    outputs: tuple[Permutation, ...]
    attributes: Mapping[str, AttributeValue | None] = field(
        default_factory=dict[str, "AttributeValue | None"]
    )
    constants: Mapping[int, Array] = field(default_factory=dict[int, Array])
    elsewhere: tuple[NewConstant, ...] = ()


Handler: TypeAlias = Callable[[ir.Node, Known], "Carry | None"]
"""How an operator carries a layout; None where it cannot."""


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes of ``value``, if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def data_operand(
    node: ir.Node, index: int, layout: Permutation
) -> tuple[dict[int, Permutation], dict[int, Array]] | None:
    """Operand ``index`` in ``layout``: as a transposed constant, or as a layout that it needs."""
    value = node.inputs[index]
    if rank_of(value) != len(layout):
        return None
    array = constant_array(value)
    if array is None:
        return {index: layout}, {}
    return {}, {index: np.transpose(array, layout)}


def remapped(axes: tuple[int, ...], layout: Permutation) -> tuple[int, ...]:
    """Where ``axes`` (negative ones count from the end) are stored."""
    return tuple(layout.index(axis % len(layout)) for axis in axes)


def int_attribute(node: ir.Node, name: str, default: int) -> int | None:
    """An integer attribute; None where a function's caller gives it."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return None if attribute.is_ref() else attribute.as_int()
