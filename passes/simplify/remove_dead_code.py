"""remove-dead-code: drop what no output depends on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.patterns import apply_rules, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs, all_nodes, nested_graphs, use_count

_OutputOption = onnx.defs.OpSchema.FormalParameterOption


@rule("drop-unused-node")
def drop_unused_node(node: ir.Node, rewriter: Rewriter) -> None:
    """Erase a node whose outputs nothing reads: ONNX operators have no side effects."""
    if not any(_is_used(output) for output in node.outputs):
        rewriter.erase(node)


@rule("drop-unused-outputs")
def drop_unused_outputs(node: ir.Node, rewriter: Rewriter) -> None:
    """Drop trailing optional outputs that nothing reads."""
    if not node.outputs or _is_used(node.outputs[-1]):
        return
    used = max((i for i, output in enumerate(node.outputs) if _is_used(output)), default=-1) + 1
    # Before opset 14 the number of outputs decides whether BatchNormalization trains.
    if node.op_type == "BatchNormalization":
        return
    needed = _required_outputs(node.op_type, node.domain, rewriter.opset(node, node.domain))
    if needed is not None and max(used, needed) < len(node.outputs):
        rewriter.truncate_outputs(node, max(used, needed))


@dataclass(frozen=True)
class RemoveDeadCode(Pass):
    """Remove nodes, optional outputs, initializers, local functions and opset imports in no use.

    Graph inputs and outputs stay as they are, and so do initializers that are graph inputs.
    """

    name: ClassVar[str] = "remove-dead-code"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Remove functions first: what only they used goes with them."""
        _remove_functions(model, rewriter)
        apply_rules(rewriter, (drop_unused_node, drop_unused_outputs))
        _remove_functions(model, rewriter)
        _remove_initializers(model, rewriter)
        _remove_opsets(model, rewriter)


def _is_used(value: ir.Value) -> bool:
    return use_count(value) > 0 or value.is_graph_output()


@functools.cache
def _required_outputs(op_type: str, domain: str, opset: int) -> int | None:
    """How many outputs the operator always has; None where the number itself means something."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    options = [output.option for output in schema.outputs]
    if _OutputOption.Variadic in options:
        return None
    return sum(option != _OutputOption.Optional for option in options)


def _remove_functions(model: ir.Model, rewriter: Rewriter) -> None:
    if not model.functions:
        return
    called: set[ir.OperatorIdentifier] = set()
    pending = list(_calls(model, model.graph))
    while pending:
        identifier = pending.pop()
        if identifier not in called:
            called.add(identifier)
            pending.extend(_calls(model, model.functions[identifier].graph))
    for identifier in [each for each in model.functions if each not in called]:
        with rewriter.step("drop-unused-function"):
            rewriter.remove_function(identifier)


def _calls(model: ir.Model, graph: ir.Graph) -> Iterator[ir.OperatorIdentifier]:
    for each in (graph, *nested_graphs(graph)):
        for node in each:
            if node.op_identifier() in model.functions:
                yield node.op_identifier()


def _remove_initializers(model: ir.Model, rewriter: Rewriter) -> None:
    for graph in all_graphs(model):
        for value in tuple(graph.initializers.values()):
            if _is_used(value) or value.is_graph_input():
                continue
            with rewriter.step("drop-unused-initializer"):
                rewriter.remove_initializer(value)


def _remove_opsets(model: ir.Model, rewriter: Rewriter) -> None:
    if not any(model.opset_imports):
        return
    # The model's imports also name the versions of its functions' domains.
    used = {node.domain for node in all_nodes(model)} | {key[0] for key in model.functions}
    for domain in [each for each in model.opset_imports if each and each not in used]:
        with rewriter.step("drop-unused-opset"):
            rewriter.remove_opset(model.graph, domain)
