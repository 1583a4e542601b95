"""Shapes of the states of Loops, which inference leaves open because a step may change them."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.bodies import body_of
from onnxfold.passes.grad.shapes import same_dims
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.type_inference import infer_node_types
from onnxfold.passes.walk import iterate_graphs, nested_graphs

_STATES = 2


def infer_loop_states(model: ir.Model, rewriter: Rewriter) -> None:
    """Give states that keep the shape they begin with that shape, and what depends on them.

    Nothing is done to models in which all shapes of states are known.
    """
    graphs = [model.graph, *nested_graphs(model.graph)]
    loops = [node for graph in graphs for node in graph if _is_loop(node)]
    if any(output.shape is None for node in loops for output in node.outputs if output.name):
        with rewriter.step("set-type", loops[0]):
            _infer(model.graph, rewriter)


def _infer(graph: ir.Graph, rewriter: Rewriter) -> None:
    model = rewriter.model
    for node in graph:
        if _is_loop(node):
            _settle(node, body_of(node), rewriter)
            continue
        for body in iterate_graphs(node):
            _infer(body, rewriter)
        if not any(iterate_graphs(node)) and any(each.shape is None for each in node.outputs):
            infer_node_types(node, model.opset_imports, model.ir_version or 1)


def _settle(node: ir.Node, body: ir.Graph, rewriter: Rewriter) -> None:
    """Assume that states keep their shapes; take it back where the body says otherwise."""
    count = len(body.inputs) - _STATES
    before, after = body.inputs[_STATES:], body.outputs[1 : count + 1]
    initial = node.inputs[_STATES:]
    inside = (body, *nested_graphs(body))
    values = [output for graph in inside for inner in graph for output in inner.outputs]
    known = [(value, value.type, value.shape) for value in (*before, *values)]
    for state, first in zip(before, initial, strict=True):
        if first is not None and first.shape is not None and state.shape is None:
            rewriter.set_type(state, first.dtype, first.shape)
    _infer(body, rewriter)
    if not all(map(same_dims, before, after)):
        for value, dtype, shape in known:
            rewriter.declare(value, dtype, shape)
        return
    for output, state in zip(node.outputs, after, strict=False):
        if output.shape is None:
            rewriter.set_type(output, state.dtype, state.shape)
    for output, given in zip(node.outputs[count:], body.outputs[count + 1 :], strict=False):
        if output.shape is None and given.shape is not None:
            rewriter.set_type(output, given.dtype, ir.Shape([None, *given.shape]))


def _is_loop(node: ir.Node) -> bool:
    return node.op_type == "Loop" and not node.domain
