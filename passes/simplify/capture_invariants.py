"""Pass ``capture-invariants``: what a loop hands on unchanged is read where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_SCAN_WITHOUT_BATCHES = 9


@dataclass(frozen=True, eq=False)
class _State:
    """A state variable that no iteration changes.

    Attributes:
        index: Which input of the Loop or Scan gives its first value.
        initial: That value.
        result: The output with its last value, the same.
        chain: The body's output, and what it is a copy of, down to the body's input.
    """

    index: int
    initial: ir.Value
    result: ir.Value
    chain: tuple[ir.Value, ...]

    @property
    def readers(self) -> list[tuple[ir.Node, int]]:
        """Who reads it inside, but for the copies that only hand it on."""
        copies = {value.producer() for value in self.chain} - {None}
        uses = [(use.node, use.idx) for value in self.chain for use in value.uses()]
        return [(node, index) for node, index in uses if node not in copies]


@rule("capture-invariants", "Loop", "Scan")
def capture_invariants(node: ir.Node, rewriter: Rewriter) -> None:
    """Let a body and what follows read the first value of what does not change.

    The state itself becomes an empty tensor, so that nothing is copied at every iteration.
    """
    for state in list(_invariant_states(node, rewriter.opset(node))):
        body = node.attributes["body"].as_graph()
        for reader, index in state.readers:
            rewriter.set_input(reader, index, state.initial)
        kept = state.result.is_graph_output()
        if state.result.uses() and not kept:
            rewriter.replace_value(state.result, state.initial)
        handed_on = sum(output in state.chain for output in body.outputs)
        dtype = state.initial.dtype
        if kept or handed_on > 1 or dtype in (None, ir.DataType.STRING) or _is_empty(state):
            continue
        empty: Array = np.zeros(0, dtype.numpy())
        name = f"{state.result.name or state.chain[-1].name}_unchanged"
        rewriter.set_input(node, state.index, rewriter.constant(node, empty, name=name))
        for value in (state.result, *state.chain):
            rewriter.set_type(value, dtype, (0,))


@dataclass(frozen=True)
class CaptureInvariants(PatternPass):
    """Let bodies of Loop and Scan read what no iteration changes from outside.

    TensorFlow's exporters hand weights from one iteration to the next. Read from outside they are
    constants again, which can be folded, packed and quantized, and are not copied.
    """

    name: ClassVar[str] = "capture-invariants"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """One rule."""
        return (capture_invariants,)


def _invariant_states(node: ir.Node, opset: int) -> Iterator[_State]:
    attribute = node.attributes.get("body")
    if attribute is None or attribute.is_ref():
        return
    body = attribute.as_graph()
    if node.op_type == "Loop":
        # The number of iterations and the condition come first.
        first, count, skipped = 2, len(node.inputs) - 2, 1
    else:
        if opset < _SCAN_WITHOUT_BATCHES:
            return
        scanned = node.attributes.get_int("num_scan_inputs", 0)
        first, count, skipped = 0, len(node.inputs) - scanned, 0
    for number in range(max(count, 0)):
        initial = node.inputs[first + number]
        chain = _chain(body.outputs[skipped + number], body.inputs[first + number], body)
        if initial is None or not chain:
            continue
        state = _State(first + number, initial, node.outputs[number], chain)
        if state.readers or (state.result.uses() and not state.result.is_graph_output()):
            yield state


def _chain(output: ir.Value, source: ir.Value, body: ir.Graph) -> tuple[ir.Value, ...]:
    """``output`` and what it copies, down to ``source``; empty where it is no copy of that."""
    chain = [output]
    while chain[-1] is not source:
        producer = chain[-1].producer()
        if producer is None or producer.op_type != "Identity" or producer.domain:
            return ()
        value = producer.inputs[0]
        if value is None or producer.graph is not body:
            return ()
        chain.append(value)
    return tuple(chain)


def _is_empty(state: _State) -> bool:
    """Whether there is nothing to save."""
    shape = state.initial.shape
    return shape is not None and len(shape) == 1 and shape[0] == 0
