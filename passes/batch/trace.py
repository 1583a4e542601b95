"""Follows the samples of a batch from the inputs of a model to its outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.batch import elementwise, movement, products
from onnxfold.passes.batch.site import Edit, MixedSamplesError, Site
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.type_inference import infer_model_types
from onnxfold.passes.walk import all_graphs, iterate_graphs, label, nested_graphs

_RULES = {**elementwise.RULES, **products.RULES, **movement.RULES}
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_SYMBOL = "onnxfold_batch"

Dim = int | str | None
"""A size, a symbol, or nothing known."""


@dataclass(frozen=True)
class Trace:
    """Where the samples of a batch lie.

    Attributes:
        axes: The axis along which samples follow each other, of every value that holds any.
        edits: What holds their number as a constant, and what it becomes.
        factors: How many places along that axis each sample takes; unknown where it is not listed.
        grouped: The values among them in which one sample does not lie in one piece.
    """

    axes: Mapping[ir.Value, int]
    edits: Sequence[Edit]
    factors: Mapping[ir.Value, int]
    grouped: frozenset[ir.Value]


def trace_batch(model: ir.Model, inputs: Collection[str], batch: int) -> Trace:
    """Follow samples through ``model``, which lie along the first axis of ``inputs``.

    Args:
        model: Not modified.
        inputs: Names of its inputs that hold samples.
        batch: How many there are in the model as it is; where it leaves that open, 1.

    Raises:
        MixedSamplesError: An operator computes across samples, or nobody knows what it does; the
            message names it.
    """
    shapes = shapes_for(model, dict.fromkeys(inputs, batch))
    symbolic = {
        name: dims.index(_SYMBOL)
        for name, dims in shapes_for(model, dict.fromkeys(inputs, _SYMBOL)).items()
        if dims.count(_SYMBOL) == 1
    }
    known = {
        name: [each if isinstance(each, int) else None for each in dims]
        for name, dims in shapes.items()
    }
    axes: dict[ir.Value, int] = {each: 0 for each in model.graph.inputs if each.name in inputs}
    outers: dict[ir.Value, int] = {}
    edits: list[Edit] = []
    opset = model.opset_imports.get("", 1)
    for node in model.graph:
        found = [None if value is None else axes.get(value) for value in node.inputs]
        site = Site(node, batch, found, known, symbolic, opset, _outer(node, axes, outers))
        for value, axis in zip(node.outputs, _through(site, axes), strict=False):
            if axis is not None:
                axes[value], outers[value] = axis, site.outer
        edits += site.edits
    factors: dict[ir.Value, int] = {}
    for value, axis in axes.items():
        size = known.get(value.name or "", [None] * (axis + 1))[axis]
        if size is not None:
            factors[value] = size // batch
    grouped = frozenset(value for value, outer in outers.items() if outer != 1)
    return Trace(axes, edits, factors, grouped)


def _outer(node: ir.Node, axes: Mapping[ir.Value, int], outers: Mapping[ir.Value, int]) -> int:
    """How many groups of samples a node's inputs have: the same in all of them."""
    found = {outers.get(value, 1) for value in node.inputs if value is not None and value in axes}
    if len(found) > 1:
        raise MixedSamplesError(f"{label(node)} combines samples that lie in another order")
    return next(iter(found), 1)


def _through(site: Site, axes: Mapping[ir.Value, int]) -> Sequence[int | None]:
    """Where samples are in what a node computes."""
    node = site.node
    captured = any(value in axes for value in _captured(node))
    if not site.carriers and not captured:
        # What reads no sample may still be as long as the batch: sizes are no samples.
        return [site.symbolic.get(value.name or "") for value in node.outputs]
    if captured or any(True for _ in iterate_graphs(node)):
        raise MixedSamplesError(f"{label(node)} has a body that reads samples")
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain not in _DOMAINS:
        raise MixedSamplesError(f"{label(node)} is not known to keep samples apart")
    return rule(site)


def _captured(node: ir.Node) -> list[ir.Value]:
    bodies = [each for body in iterate_graphs(node) for each in (body, *nested_graphs(body))]
    return [value for body in bodies for each in body for value in each.inputs if value is not None]


def shapes_for(model: ir.Model, first: Mapping[str, int | str]) -> dict[str, list[Dim]]:
    """The shapes of all values of the main graph, as they follow from those of its inputs alone.

    Args:
        model: Not modified.
        first: First dimensions that inputs are given, by name.
    """
    copy = model.clone()
    for graph in all_graphs(copy):
        for node in graph:
            for value in node.outputs:
                value.shape = None
    for value in copy.graph.inputs:
        size = first.get(value.name or "")
        if size is not None and value.shape is not None:
            value.shape = ir.Shape([size, *value.shape[1:]])
    # What is declared for an output is never inferred.
    copy.graph.outputs.clear()
    infer_model_types(copy, Rewriter(copy, "trace-batch"))
    values = (value for node in copy.graph for value in node.outputs)
    everything = (*copy.graph.inputs, *copy.graph.initializers.values(), *values)
    return {
        value.name or "": [each if isinstance(each, int) else each.value for each in value.shape]
        for value in everything
        if value.shape is not None
    }
