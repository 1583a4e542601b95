"""lower-gradient: ``ai.onnx.preview.training::Gradient`` becomes ordinary operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.differentiate import Differentiator
from onnxfold.passes.grad.differentiated_copy import copy_between
from onnxfold.passes.grad.loop_shapes import infer_loop_states
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.type_inference import infer_model_types
from onnxfold.passes.walk import all_nodes, label

DOMAIN = "ai.onnx.preview.training"
_OLDEST_OPSET = 18


@dataclass(frozen=True)
class LowerGradient(Pass):
    """Lower each Gradient node to the operators that compute it: reverse-mode differentiation.

    A Gradient of a Gradient's output is lowered too, which gives second and higher orders. Where
    the node's inputs are the tensors that it names, the values of the forward pass are used;
    otherwise what lies between is computed again at the given inputs. A tensor that the result
    does not depend on has a gradient of zeros.

    Attributes:
        steps: The gradients of quantization scales: as they are (``exact``), or divided by
            sqrt(N q), N elements sharing the scale and q the largest code (``normalized``), which
            lets one learning rate serve scales and weights (Esser et al. 2020, section 2.2).
    """

    name: ClassVar[str] = "lower-gradient"
    contract: ClassVar[Contract] = Contract.ADDITIVE

    steps: Literal["exact", "normalized"] = "exact"

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Lower the Gradient nodes in the order in which they stand.

        Raises:
            UsageError: An operator has no gradient, a named tensor is missing, or the opset of
                ai.onnx is below 18.
        """
        nodes = [each for each in all_nodes(model) if _is_gradient(each)]
        if not nodes:
            return
        infer_model_types(model, rewriter)
        infer_loop_states(model, rewriter)
        for node in nodes:
            if rewriter.opset(node) < _OLDEST_OPSET:
                raise UsageError(
                    f"{label(node)} needs opset {_OLDEST_OPSET} or later to be lowered, the model "
                    f"has {rewriter.opset(node)}: run upgrade-opset{{to=21}} first"
                )
            with rewriter.step("lower-gradient", node):
                _lower(node, Differentiator(rewriter, self.steps == "normalized"))
        if not any(_is_gradient(each) for each in all_nodes(model)):
            _forget_domain(model, rewriter)


def _is_gradient(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "Gradient"


def _lower(node: ir.Node, differentiator: Differentiator) -> None:
    rewriter = differentiator.rewriter
    graphs = _graphs_around(node, rewriter)
    visible = _visible_values(graphs)
    xs = [_named(node, name, visible) for name in _strings(node, "xs")]
    zs = [_named(node, name, visible) for name in _strings(node, "zs")]
    result = _result(node, visible)
    given = [_present(node, index) for index in range(len(xs) + len(zs))]
    builder = Builder(rewriter, node)
    independent = zs
    if given != [*xs, *zs]:
        copies = dict(zip([*xs, *zs], given, strict=True))
        result = copy_between(builder, copies, result)
        xs, independent = given[: len(xs)], given
    wanted = [x for x, output in zip(xs, node.outputs, strict=False) if output.name]
    for x in wanted:
        if not _is_real(x):
            raise UsageError(f"{label(node)}: '{x.name}' is not real: it has no gradient")
    seeds = {result: builder.full_like(result, 1.0)}
    gradients = iter(
        differentiator.gradients(builder, seeds, wanted, until=independent, around=graphs[1:])
    )
    replacements = [
        (next(gradients) or builder.zeros_like(x)) if output.name else None
        for x, output in zip(xs, node.outputs, strict=False)
    ]
    rewriter.replace_node(node, replacements)
    builder.erase_unused()


def _result(node: ir.Node, visible: dict[str, ir.Value]) -> ir.Value:
    """What is differentiated."""
    named = node.attributes.get("y")
    if named is None:
        raise UsageError(f"{label(node)} has no attribute y: what is to be differentiated?")
    result = _named(node, named.as_string(), visible)
    if not _is_real(result):
        raise UsageError(f"{label(node)}: '{result.name}' is not real: it has no gradient")
    return result


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _graphs_around(node: ir.Node, rewriter: Rewriter) -> list[ir.Graph]:
    """The graph of the node, and those that it is nested in; inner before outer."""
    graphs: list[ir.Graph] = []
    holder: ir.Node | None = node
    while holder is not None and isinstance(holder.graph, ir.Graph):
        graphs.append(holder.graph)
        holder = rewriter.scopes.holder(holder.graph)
    if graphs and rewriter.scopes.in_function(graphs[0]):
        raise UsageError(
            f"{label(node)} stands in a function: run inline-functions{{which=all}} first"
        )
    return graphs


def _present(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise UsageError(f"{label(node)} has no input {index} for what xs and zs name")
    return value


def _strings(node: ir.Node, name: str) -> tuple[str, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_strings())


def _visible_values(graphs: Sequence[ir.Graph]) -> dict[str, ir.Value]:
    """The values of the graphs by name; inner ones hide outer ones."""
    values: list[ir.Value] = []
    for graph in reversed(graphs):
        values += [*graph.inputs, *graph.initializers.values()]
        values += [output for each in graph for output in each.outputs]
    return {value.name: value for value in values if value.name}


def _named(node: ir.Node, name: str, visible: dict[str, ir.Value]) -> ir.Value:
    if name not in visible:
        raise UsageError(f"{label(node)} names '{name}', which is no tensor that it can read")
    return visible[name]


def _forget_domain(model: ir.Model, rewriter: Rewriter) -> None:
    if DOMAIN in model.graph.opset_imports and not any(
        node.domain == DOMAIN for node in all_nodes(model)
    ):
        with rewriter.step("remove-opset"):
            rewriter.remove_opset(model.graph, DOMAIN)
