"""lower-gradient: ``ai.onnx.preview.training::Gradient`` becomes ordinary operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.builder import Builder, dtype_of
from onnxfold.passes.grad.differentiate import Differentiator
from onnxfold.passes.grad.differentiated_copy import copy_between
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
    """

    name: ClassVar[str] = "lower-gradient"
    contract: ClassVar[Contract] = Contract.ADDITIVE

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
        for node in nodes:
            if rewriter.opset(node) < _OLDEST_OPSET:
                raise UsageError(
                    f"{label(node)} needs opset {_OLDEST_OPSET} or later to be lowered, the model "
                    f"has {rewriter.opset(node)}: run upgrade-opset first"
                )
            with rewriter.step("lower-gradient", node):
                _lower(node, rewriter)
        if not any(_is_gradient(each) for each in all_nodes(model)):
            _forget_domain(model, rewriter)


def _is_gradient(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "Gradient"


def _lower(node: ir.Node, rewriter: Rewriter) -> None:
    visible = _visible_values(node)
    names = {key: _strings(node, key) for key in ("xs", "zs")}
    xs = [_named(node, name, visible) for name in names["xs"]]
    zs = [_named(node, name, visible) for name in names["zs"]]
    result = _named(node, node.attributes["y"].as_string(), visible)
    given = [_present(node, index) for index in range(len(xs) + len(zs))]
    builder = Builder(rewriter, node)
    if given != [*xs, *zs]:
        copies = dict(zip([*xs, *zs], given, strict=True))
        result = copy_between(builder, copies, result)
        xs, zs = given[: len(xs)], given[len(xs) :]
    seeds = {result: builder.full_like(result, 1.0)}
    dtype_of(result)
    wanted = [x for x, output in zip(xs, node.outputs, strict=False) if output.name]
    found = Differentiator(rewriter).gradients(builder, seeds, wanted, until=zs)
    gradients = iter(found)
    replacements = [
        (next(gradients) or builder.zeros_like(x)) if output.name else None
        for x, output in zip(xs, node.outputs, strict=False)
    ]
    rewriter.replace_node(node, replacements)
    builder.erase_unused()


def _present(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise UsageError(f"{label(node)} has no input {index} for what xs and zs name")
    return value


def _strings(node: ir.Node, name: str) -> tuple[str, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_strings())


def _visible_values(node: ir.Node) -> dict[str, ir.Value]:
    """The values of the node's graph by name."""
    graph = node.graph
    if graph is None:
        return {}
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for each in graph for output in each.outputs]
    return {value.name: value for value in values if value.name}


def _named(node: ir.Node, name: str, visible: dict[str, ir.Value]) -> ir.Value:
    if name not in visible:
        raise UsageError(f"{label(node)} names '{name}', which is no tensor of its graph")
    return visible[name]


def _forget_domain(model: ir.Model, rewriter: Rewriter) -> None:
    if DOMAIN in model.graph.opset_imports and not any(
        node.domain == DOMAIN for node in all_nodes(model)
    ):
        with rewriter.step("remove-opset"):
            rewriter.remove_opset(model.graph, DOMAIN)
