"""inline-functions: put the bodies of local functions where they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.op_kinds import is_dequantize, is_quantize
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes, iterate_graphs

_RUNTIME_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
"""Operators of these domains may have kernels, which are faster than their functions."""


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Put the bodies of local functions in the place of their calls.

    Parameters of a function (inputs and attributes) become known there, and so do the shapes in
    its body. Functions that are called no more are removed.

    Attributes:
        which: ``quantized`` for functions that quantize or dequantize themselves, or are called
            between DequantizeLinear and QuantizeLinear; ``all``.
    """

    name: ClassVar[str] = "inline-functions"
    contract: ClassVar[Contract] = Contract.EXACT

    which: Literal["quantized", "all"] = "quantized"

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Inline calls in the main graph, then in the functions that are still called."""
        functions = {
            key: function
            for key, function in model.functions.items()
            if function.domain not in _RUNTIME_DOMAINS
        }
        if not functions:
            return
        inliner = _Inliner(functions, rewriter, every=self.which == "all")
        inliner.inline(model.graph)
        _remove_uncalled(model, rewriter)
        for function in model.functions.values():
            inliner.inline(function.graph)
        _remove_uncalled(model, rewriter)


class _Inliner:
    """Inlines calls of some functions."""

    def __init__(
        self,
        functions: dict[ir.OperatorIdentifier, ir.Function],
        rewriter: Rewriter,
        *,
        every: bool,
    ) -> None:
        self._functions = functions
        self._wanted = frozenset(functions) if every else _quantizing(functions)
        self._rewriter = rewriter

    def inline(self, graph: ir.Graph) -> None:
        """Inline the calls in ``graph`` and its bodies, and those they bring with them."""
        waiting = [node for node in graph.all_nodes() if self._is_call(node)][::-1]
        while waiting:
            call = waiting.pop()
            function = self._functions[call.op_identifier()]
            if call.op_identifier() not in self._wanted and not _is_between(call):
                continue
            if obstacle := _obstacle(call, function, self._rewriter):
                self._rewriter.remark(call, f"it is not inlined: {obstacle}")
                continue
            inserted = _inline(call, function, self._rewriter)
            waiting += [node for node in inserted[::-1] if self._is_call(node)]

    def _is_call(self, node: ir.Node) -> bool:
        return node.op_identifier() in self._functions


def _quantizing(
    functions: dict[ir.OperatorIdentifier, ir.Function],
) -> frozenset[ir.OperatorIdentifier]:
    """The functions in which, or in what they call, something is quantized or dequantized."""
    found: frozenset[ir.OperatorIdentifier] = frozenset()
    while True:
        grown = frozenset(
            key
            for key, function in functions.items()
            if any(
                is_quantize(node) or is_dequantize(node) or node.op_identifier() in found
                for node in function.all_nodes()
            )
        )
        if grown == found:
            return found
        found = grown


def _is_between(call: ir.Node) -> bool:
    """Whether its input is dequantized, or its result quantized."""
    producers = [value.producer() for value in call.inputs if value is not None]
    readers = [use.node for output in call.outputs for use in output.uses() if use.idx == 0]
    return any(node is not None and is_dequantize(node) for node in producers) or any(
        is_quantize(node) for node in readers
    )


def _obstacle(call: ir.Node, function: ir.Function, rewriter: Rewriter) -> str:
    """Why the body does not mean the same in the caller's graph; empty if it does."""
    for domain, version in function.opset_imports.items():
        used = rewriter.opset(call, domain)
        if used and used != version:
            return f"its operators are of opset {version}, the caller's of {used}"
    if any(attribute.is_ref() for attribute in call.attributes.values()):
        return "its attributes are parameters of another function"
    if any(any(iterate_graphs(node)) for node in function):
        return "its body has branches or loops"
    if any(output in function.inputs for output in function.outputs):
        return "it returns an argument as it is"
    return ""


def _inline(call: ir.Node, function: ir.Function, rewriter: Rewriter) -> list[ir.Node]:
    values: dict[ir.Value, ir.Value | None] = dict.fromkeys(function.inputs)
    values.update(zip(function.inputs, call.inputs, strict=False))
    inserted: list[ir.Node] = []
    with rewriter.step("inline-function", call):
        for node in function:
            copy = rewriter.insert_node(
                call,
                node.op_type,
                [None if value is None else values[value] for value in node.inputs],
                name=f"{call.name or call.outputs[0].name}_{node.name or node.outputs[0].name}",
                attributes=_attributes(node, call, function),
                domain=node.domain,
                outputs=len(node.outputs),
            )
            inserted.append(copy)
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                values[old] = new
        results = [values[output] for output in function.outputs]
        for old, new in zip(call.outputs, results, strict=False):
            if new is None:
                continue
            is_output = old.is_graph_output()
            rewriter.replace_value(old, new)
            if not is_output:
                rewriter.swap_names(old, new)
        rewriter.erase(call)
    return inserted


def _attributes(node: ir.Node, call: ir.Node, function: ir.Function) -> dict[str, ir.Attr]:
    """The attributes of ``node``, with the call's in the place of the function's parameters."""
    resolved: dict[str, ir.Attr] = {}
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            resolved[name] = attribute
            continue
        parameter = attribute.ref_attr_name or ""
        given = call.attributes.get(parameter) or function.attributes.get(parameter)
        if given is not None and given.value is not None:
            resolved[name] = ir.Attr(name, given.type, given.value)
    return resolved


def _remove_uncalled(model: ir.Model, rewriter: Rewriter) -> None:
    while True:
        called = {node.op_identifier() for node in all_nodes(model)}
        uncalled = [key for key in model.functions if key not in called]
        if not uncalled or not rewriter.modified:
            return
        for key in uncalled:
            with rewriter.step("remove-function"):
                rewriter.remove_function(key)
