"""Lets If, Loop and Scan hand on codes instead of the real numbers that the codes stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.types import (
    DEQUANTIZE,
    QUANTIZE,
    TypeState,
    is_activation_type,
    is_dequantize,
)
from onnxfold.passes.fold.wants import find_wants
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs, iterate_graphs, use_count

_ANY_INPUT = frozenset({"Concat", "Max", "Min"})
_FIRST_INPUT = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Ops all of whose results are among the numbers that they read, or 0, which is always a code."""


@dataclass(frozen=True)
class _Source:
    """Where a real number enters or leaves a body: an input of the node, or an output of a body.

    Attributes:
        holder: The node, or the body.
        index: Which of its inputs, or outputs.
    """

    holder: ir.Node | ir.Graph
    index: int

    @property
    def value(self) -> ir.Value | None:
        """What is handed on there."""
        if isinstance(self.holder, ir.Node):
            return self.holder.inputs[self.index]
        return self.holder.outputs[self.index]


@dataclass(frozen=True)
class _Slot:
    """What is one tensor to a control-flow node: a result, a state, a slice.

    Attributes:
        node: The node.
        sources: What is handed on.
        sinks: The values it is read by.
    """

    node: ir.Node
    sources: tuple[_Source, ...]
    sinks: tuple[ir.Value, ...]


@dataclass(frozen=True)
class CarryCodes(Pass):
    """Let If, Loop and Scan take and give codes where they stand for the same real numbers.

    That is where all that reads a result, a state or a slice quantizes it alike, or where all that
    is handed on are codes of one type already. The bodies then quantize and dequantize, and fold.

    Attributes:
        recode: Whether int8 codes are handed on as uint8 codes of the same numbers.
    """

    recode: bool = False

    name: ClassVar[str] = "carry-codes"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Rewrite slots until none is left: one may follow from another, in or around it."""
        if not any(_slots(node) for graph in all_graphs(model) for node in graph):
            return
        types, progress = TypeState(recode=self.recode), True
        while progress:
            types.wants.clear()
            graphs = tuple(all_graphs(model))
            find_wants(graphs, types)
            holders = [node for graph in graphs for node in graph if _slots(node)]
            progress = sum(self._carry(node, types, rewriter) for node in holders) > 0

    def _carry(self, node: ir.Node, types: TypeState, rewriter: Rewriter) -> bool:
        carried = False
        for slot in _slots(node):
            affine = _common_type(slot, types)
            if affine is not None and _is_writable(slot):
                _write(slot, affine, rewriter)
                carried = True
        return carried


def _slots(node: ir.Node) -> tuple[_Slot, ...]:
    """What ``node`` hands on, where it is an If, Loop or Scan."""
    if node.domain or node.op_type not in ("If", "Loop", "Scan"):
        return ()
    bodies = tuple(iterate_graphs(node))
    if node.op_type == "If":
        return tuple(
            _Slot(node, tuple(_Source(body, index) for body in bodies), (output,))
            for index, output in enumerate(node.outputs)
        )
    return tuple(_iterated(node, bodies[0]))


def _iterated(node: ir.Node, body: ir.Graph) -> Iterator[_Slot]:
    """States, stacked results and slices of a Loop or Scan."""
    is_loop = node.op_type == "Loop"
    # A Loop has its number of iterations and its condition in front of the states.
    before, after = (2, 1) if is_loop else (0, 0)
    sliced = 0 if is_loop else node.attributes.get_int("num_scan_inputs", 0)
    states = len(body.inputs) - before - sliced
    for index, output in enumerate(node.outputs):
        result = _Source(body, after + index)
        if index < states:
            start = _Source(node, before + index)
            yield _Slot(node, (start, result), (body.inputs[before + index], output))
        else:
            yield _Slot(node, (result,), (output,))
    for index in range(states, states + sliced):
        yield _Slot(node, (_Source(node, index),), (body.inputs[index],))


def _common_type(slot: _Slot, types: TypeState) -> AffineType | None:
    """The type whose codes can be handed on instead; None where there is none."""
    values = [*slot.sinks, *(source.value for source in slot.sources)]
    # A result may have no type yet, what a body declares has one.
    if {None if each is None else each.dtype for each in values} - {None} != {ir.DataType.FLOAT}:
        return None
    read = [sink for sink in slot.sinks if use_count(sink) or sink.is_graph_output()]
    wants = [types.want(sink) for sink in read]
    if wants and wants[0] is not None and all(want is wants[0] for want in wants):
        return wants[0]
    # Nothing is gained where codes would only be dequantized in another place.
    if len(slot.sinks) == 1 and not use_count(slot.sinks[0]):
        return None
    return _type_of_sources(slot, types)


def _type_of_sources(slot: _Slot, types: TypeState) -> AffineType | None:
    """The type of which all that is handed on are codes already."""
    leaves: list[AffineType | Array] = []
    for source in slot.sources:
        if not _find_leaves(source.value, slot, types, leaves):
            return None
    found = [each for each in leaves if isinstance(each, AffineType)]
    if not found or any(each is not found[0] for each in found):
        return None
    constants = [each for each in leaves if not isinstance(each, AffineType)]
    exact = (found[0].dequantize(found[0].quantize(each)) for each in constants)
    same = all(np.array_equal(*pair) for pair in zip(exact, constants, strict=True))
    return found[0] if same else None


def _find_leaves(
    value: ir.Value | None, slot: _Slot, types: TypeState, leaves: list[AffineType | Array]
) -> bool:
    """Add the types and constants that the elements of ``value`` come from; whether all do."""
    pending, seen = [value], set[ir.Value]()
    while pending:
        each = pending.pop()
        if each is None or each in seen or each in slot.sinks:
            continue
        seen.add(each)
        constant, node = constant_array(each), each.producer()
        if constant is not None and constant.dtype == np.float32:
            leaves.append(constant)
        elif node is not None and is_dequantize(node):
            affine = types.parameters(node)
            if affine is None or not is_activation_type(affine):
                return False
            leaves.append(types.internal(affine))
        elif node is None or node.domain or node.op_type not in _ANY_INPUT | _FIRST_INPUT:
            return False
        else:
            pending += node.inputs if node.op_type in _ANY_INPUT else node.inputs[:1]
    return True


def _is_writable(slot: _Slot) -> bool:
    """Whether each end is a value of its own, computed where it is handed on."""
    for source in slot.sources:
        value = source.value
        if value is None:
            return False
        if isinstance(source.holder, ir.Graph):
            node = value.producer()
            alone = sum(each is value for each in source.holder.outputs) == 1
            if node is None or node.graph is not source.holder or not alone:
                return False
    inner = [sink for sink in slot.sinks if sink.producer() is None]
    return all(sink.graph is not None and not sink.is_graph_output() for sink in inner)


def _write(slot: _Slot, affine: AffineType, rewriter: Rewriter) -> None:
    with rewriter.step("carry-codes", slot.node):
        for source in slot.sources:
            _quantize(source, affine, rewriter)
        for sink in slot.sinks:
            _dequantize(slot.node, sink, affine, rewriter)


def _quantize(source: _Source, affine: AffineType, rewriter: Rewriter) -> None:
    """Let codes be handed on."""
    value = source.value
    assert value is not None
    anchor = source.holder if isinstance(source.holder, ir.Node) else value.producer()
    assert anchor is not None
    is_result = isinstance(source.holder, ir.Graph)
    codes = rewriter.insert(
        anchor,
        QUANTIZE,
        [value, *_parameters(anchor, affine, rewriter)],
        name=f"{value.name}_quantized",
        dtype=affine.dtype,
        shape=value.shape,
        after=is_result,
    )
    if isinstance(source.holder, ir.Node):
        rewriter.set_input(source.holder, source.index, codes)
        return
    rewriter.replace_value(value, codes, keep=[use.node for use in value.uses()])
    rewriter.set_type(codes, affine.dtype)
    rewriter.swap_names(value, codes)
    rewriter.rename(codes, f"{value.name}_codes")


def _dequantize(node: ir.Node, sink: ir.Value, affine: AffineType, rewriter: Rewriter) -> None:
    """Let the readers of ``sink``, which becomes codes, read the real numbers."""
    is_result = sink.producer() is not None
    if not (use_count(sink) or sink.is_graph_output()):
        rewriter.set_type(sink, affine.dtype)
        return
    anchor = node if is_result else next(iter(sink.graph or ()))
    real = rewriter.insert(
        anchor,
        DEQUANTIZE,
        [sink, *_parameters(anchor, affine, rewriter)],
        name=f"{sink.name}_codes",
        dtype=ir.DataType.FLOAT,
        shape=sink.shape,
        after=is_result,
    )
    was_output = sink.is_graph_output()
    rewriter.replace_value(sink, real)
    rewriter.set_type(sink, affine.dtype)
    if not was_output:
        rewriter.swap_names(sink, real)


def _parameters(anchor: ir.Node, affine: AffineType, rewriter: Rewriter) -> Sequence[ir.Value]:
    zero_point = affine.zero_point.astype(affine.dtype.numpy())
    return (
        rewriter.constant(anchor, affine.scale, name="scale"),
        rewriter.constant(anchor, zero_point, name="zero_point"),
    )
