"""Moves a number that scales a product of two tensors to where a linear operator takes it in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.channel_affine import BiasedLinear
from onnxfold.passes.constants import constant_array, constant_tensor
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_MOVES = frozenset({"Reshape", "Transpose"})


@rule("scale-factor", "Mul", "Div")
def _scale_factor(node: ir.Node, rewriter: Rewriter) -> None:
    scaled = _scaled(node)
    if scaled is None:
        return
    data, number = scaled
    for reader, linear in _linear_factors(data):
        factor = rewriter.insert(
            reader,
            node.op_type,
            [linear, number],
            name=f"{linear.name}_scaled",
            dtype=linear.dtype,
            shape=linear.shape,
        )
        rewriter.set_input(reader, reader.inputs.index(linear), factor)
        rewriter.replace_node(node, [data])
        return


def _scaled(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """What is scaled and by which number, where ``node`` is all that reads it."""
    if len(node.inputs) != 2:
        return None
    for data, number in (node.inputs, tuple(reversed(node.inputs))):
        if data is None or number is None or (node.op_type == "Div" and data is node.inputs[1]):
            continue
        factor = constant_array(number)
        if factor is None or factor.ndim or not np.isfinite(factor) or not factor:
            continue
        return (data, number) if _has_one_reader(data) else None
    return None


def _linear_factors(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Linear operators whose scaling is that of ``value``, each with the node that reads it."""
    node = value.producer()
    if node is None or node.domain:
        return
    is_product = node.op_type == "MatMul" and all(map(_is_computed, node.inputs))
    if not is_product and node.op_type not in _MOVES:
        return
    for operand in node.inputs if is_product else node.inputs[:1]:
        if operand is None or node.graph is not _graph(operand) or not _has_one_reader(operand):
            continue
        linear = BiasedLinear.ending_in(operand)
        if linear is not None:
            yield node, operand
        else:
            yield from _linear_factors(operand)


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and constant_tensor(value) is None


def _graph(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return None if producer is None else producer.graph


def _has_one_reader(value: ir.Value) -> bool:
    return use_count(value) == 1 and not value.is_graph_output()


@dataclass(frozen=True)
class ScaleFactor(PatternPass):
    """Scale a factor instead of the product: queries instead of the scores of an attention.

    A product of two computed tensors that a number multiplies or divides is, behind Reshape and
    Transpose of what a linear operator makes, the product with that one scaled, which is smaller
    and whose weights and bias ``fold-scale-bias`` scales for nothing. Only where nothing else
    reads what lies between.
    """

    name: ClassVar[str] = "scale-factor"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_scale_factor,)
