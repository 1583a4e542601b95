"""The pass that stops rounding activations: Q/DQ pairs go, what they cut off stays cut off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import constant_array, constant_scalar
from onnxfold.passes.fold.types import (
    TypeState,
    is_activation_type,
    is_dequantize,
    is_quantize,
)
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs

_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Ops that may stand between QuantizeLinear and DequantizeLinear, on codes or on reals."""

_WITHIN = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean"})
"""Ops whose results lie between the smallest and the largest of what they read."""

_LIMITED = frozenset({"HardSigmoid", "Sigmoid", "Softmax"})
"""Ops with limits of their own: what a quantizer cuts off there is its own rounding."""

_Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class _Pair:
    """A QuantizeLinear and everything that reads its codes.

    Attributes:
        quantize: The node.
        type: The type of the codes.
        moves: The nodes between, in order.
        dequantizes: The DequantizeLinear nodes, all of that type.
    """

    quantize: ir.Node
    type: AffineType
    moves: tuple[ir.Node, ...]
    dequantizes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class RelaxRounding(Pass):
    """Do not round activations: leave out QuantizeLinear/DequantizeLinear pairs on them.

    Weights are dequantized ahead of time. What comes in or goes out as codes still does. For
    models that float kernels run faster than integer kernels: then the rounding only costs time.

    Attributes:
        limits: Whether values outside of a quantizer's range are still cut off (but for the inputs
            of the graph): ``keep`` or ``drop``.
    """

    limits: Literal["keep", "drop"] = "keep"

    name: ClassVar[str] = "relax-rounding"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Remove the pairs in order, then dequantize what is constant."""
        relaxer = _Relaxer(rewriter, self.limits == "keep")
        nodes = [node for graph in all_graphs(model) for node in graph]
        for node in nodes:
            if node.graph is not None and is_quantize(node):
                relaxer.relax(node)
        for node in nodes:
            if node.graph is not None and is_dequantize(node):
                relaxer.dequantize_constant(node)


@dataclass(eq=False)
class _Relaxer:
    """Rewrites one model; remembers between which limits values lie."""

    rewriter: Rewriter
    cuts_off: bool
    types: TypeState = field(default_factory=lambda: TypeState(recode=False))
    limits: dict[ir.Value, _Range] = field(default_factory=dict[ir.Value, _Range])

    def relax(self, node: ir.Node) -> None:
        """Remove the pair of a QuantizeLinear, where all that reads it dequantizes it alike."""
        pair, source = self._pair(node), node.inputs[0]
        if pair is None or source is None:
            return
        with self.rewriter.step("relax-rounding", node):
            real = self._within(source, pair)
            self.rewriter.replace_value(node.outputs[0], real)
            for move in pair.moves:
                self.rewriter.set_type(move.outputs[0], ir.DataType.FLOAT, move.outputs[0].shape)
            for dequantize in pair.dequantizes:
                self.rewriter.replace_node(dequantize, [dequantize.inputs[0]])
            self.rewriter.erase(node)

    def dequantize_constant(self, node: ir.Node) -> None:
        """Replace the DequantizeLinear of a constant by the real constant."""
        affine, codes = self.types.parameters(node), constant_array(node.inputs[0])
        if affine is None or codes is None or any(v.is_graph_output() for v in node.outputs):
            return
        if affine.axis is not None and affine.scale.size != codes.shape[affine.axis]:
            return
        with self.rewriter.step("dequantize-weights", node):
            real = affine.dequantize(codes).astype(np.float32)
            name = f"{node.outputs[0].name}_real"
            constant = self.rewriter.constant(node, real, name=name)
            self.rewriter.replace_node(node, [constant])

    def _pair(self, node: ir.Node) -> _Pair | None:
        affine = self.types.parameters(node)
        if affine is None or not is_activation_type(affine):
            return None
        moves: list[ir.Node] = []
        dequantizes: list[ir.Node] = []
        pending = [node.outputs[0]]
        while pending:
            value = pending.pop()
            if value.is_graph_output():
                return None
            for reader, index in value.uses():
                if is_dequantize(reader) and self.types.parameters(reader) is affine:
                    dequantizes.append(reader)
                elif reader.op_type in _MOVES and not reader.domain and index == 0:
                    moves.append(reader)
                    pending.append(reader.outputs[0])
                else:
                    return None
        return _Pair(node, affine, tuple(moves), tuple(dequantizes))

    def _within(self, source: ir.Value, pair: _Pair) -> ir.Value:
        """The value within the limits of the codes."""
        low, high = (float(pair.type.dequantize(np.asarray(code))) for code in pair.type.limits)
        half = 0.5 * float(pair.type.scale)
        if not self.cuts_off or self._is_within(source, (low - half, high + half)):
            return source
        producer = source.producer()
        own = None if producer is None else _own_limits(producer)
        if producer is not None and own is not None and producer.inputs[0] is not None:
            # One op for both, which a convolution takes in; the first is dead if nobody reads it.
            source, low, high = producer.inputs[0], max(low, own[0]), min(high, own[1])
        bounds = [
            self.rewriter.constant(pair.quantize, np.array(bound, np.float32), name="limit")
            for bound in (low, high)
        ]
        clipped = self.rewriter.insert(
            pair.quantize,
            "Clip",
            [source, *bounds],
            name=f"{source.name}_within",
            dtype=ir.DataType.FLOAT,
            shape=source.shape,
        )
        self.limits[clipped] = (low, high)
        return clipped

    def _is_within(self, value: ir.Value, limits: _Range) -> bool:
        """Whether no quantizer of these limits cuts anything off ``value``."""
        while value not in self.limits:
            node = value.producer()
            if node is None or node.domain:
                return value.is_graph_input()
            own = _own_limits(node)
            if node.op_type in _LIMITED or (own is not None and _contains(limits, own)):
                return True
            if not (node.op_type in _MOVES | _WITHIN or _pads_with_zero(node)):
                return False
            if node.inputs[0] is None:
                return False
            value = node.inputs[0]
        return _contains(limits, self.limits[value])


def _contains(limits: _Range, other: _Range) -> bool:
    return limits[0] <= other[0] and other[1] <= limits[1]


def _own_limits(node: ir.Node) -> _Range | None:
    """The limits a Relu or Clip sets; None for other ops, and where they are computed."""
    if node.op_type == "Relu" and not node.domain:
        return 0.0, np.inf
    if node.op_type != "Clip" or node.domain or "min" in node.attributes:
        return None
    bounds: list[float] = []
    for index, absent in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        bound = absent if value is None else constant_scalar(value)
        if bound is None:
            return None
        bounds.append(float(bound))
    return bounds[0], bounds[1]


def _pads_with_zero(node: ir.Node) -> bool:
    """Whether ``node`` pads with 0, which every quantizer's range holds."""
    if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or constant_scalar(value) == 0
