"""What type of codes each operator works on, and what types activations are needed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import onnx_ir as ir

from onnxfold.passes.quantize.overrides import Overrides
from onnxfold.passes.quantize.roles import Role
from onnxfold.passes.quantize.schemes import Activations, Scheme
from onnxfold.passes.quantize.units import Unit

Coded: TypeAlias = "tuple[ir.Value, ir.DataType]"
"""An activation as codes of one type."""


def with_schemes(units: Sequence[Unit], overrides: Overrides, scheme: Scheme) -> tuple[Unit, ...]:
    """``units`` with their schemes.

    What lies between linear operators follows what it reads, the widest of several types, unless
    an override says otherwise of it: two layers of 16 bits have no 8 bits between them.

    Args:
        units: In topological order.
        overrides: Exceptions.
        scheme: For all others.
    """
    typed: list[Unit] = []
    written: dict[ir.Value, Activations] = {}
    for unit in units:
        own = overrides.scheme(unit.node, scheme) if overrides else scheme
        if unit.role is not Role.LINEAR and not overrides.names_types(unit.node):
            read: list[Activations] = [
                written[value] for value in unit.operands if value in written
            ]
            own = replace(own, activations=_widest(read)) if read else own
        written.update(dict.fromkeys(unit.outputs, own.activations))
        typed.append(replace(unit, scheme=own))
    return tuple(typed)


def written_types(units: Sequence[Unit]) -> dict[ir.Value, ir.DataType]:
    """The types in which operators write what they compute.

    MatMul and Gemm are not among them: they can write real numbers, which each reader quantizes to
    a type of its own.
    """
    return {
        value: unit.scheme.activation_type
        for unit in units
        if unit.node.op_type not in ("Gemm", "MatMul")
        for value in unit.outputs
    }


def coded_values(units: Sequence[Unit]) -> dict[Coded, None]:
    """Every activation that gets a Q/DQ pair, once for each type, in the order of the graph."""
    written = written_types(units)
    values: dict[Coded, None] = {}
    for unit in units:
        dtype = unit.scheme.activation_type
        for value in unit.operands:
            values[value, written.get(value, dtype)] = None
            values[value, dtype] = None
        # A convolution without a quantized output has no fast integer kernel, unlike MatMul and
        # Gemm; an operator that only moves codes has nothing else to put out.
        if unit.role is Role.TIED or unit.node.op_type in ("Conv", "ConvTranspose"):
            values.update(dict.fromkeys((value, dtype) for value in unit.outputs))
    return values


def _widest(kinds: Sequence[Activations]) -> Activations:
    widest = kinds[0]
    for kind in kinds:
        if int(kind[1:]) > int(widest[1:]):
            widest = kind
    return widest
