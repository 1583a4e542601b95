"""Holds what an additive pass added against float64, fed with the tensors of the model itself.

The model is cut where the added part begins: it is evaluated node by node with onnx's reference
evaluator in float64, from the very tensors that ONNX Runtime computed, so that the errors of the
original model play no role, nor does its size.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.walk import all_nodes, nested_graphs
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.specs import Feed, input_specs, is_float
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.complete import MadeUpLabels, complete_feed
from onnxfold.runtime.verify.cut import cut_at, named_values, region_inputs
from onnxfold.runtime.verify.gates import PASSED, Verdict
from onnxfold.runtime.verify.metrics import OutputMetrics
from onnxfold.runtime.verify.oracle import Float64Oracle, NoOracleError

UNRUNNABLE = "ai.onnx.preview.training"
"""A domain without kernels in ONNX Runtime: what holds it waits for the pass that lowers it."""

_NOT_HELD = (
    "what was added is not held against float64: it is random, too large, or of operators of other "
    "domains"
)
_FEEDS = 2
_RELATIVE = 1e-4  # of the largest value: sums of millions of elements in float32
_ABSOLUTE = 1e-6


def is_runnable(model: ir.Model) -> bool:
    """Whether ONNX Runtime has kernels for all that is in ``model``, as far as is known here."""
    return not any(node.domain == UNRUNNABLE for node in all_nodes(model))


def check_added(
    model: ir.Model, known: Collection[str], feeds: Iterable[tuple[Feed, Feed]]
) -> tuple[tuple[OutputMetrics, ...], Verdict]:
    """Compare the outputs that were added to ``model`` with their float64 values.

    Args:
        model: The model with the additions; not modified.
        known: The names of all values that it had before.
        feeds: Feeds of the original model, with arrays for added inputs beside them.

    Returns:
        The metrics of each added output, against float64; and whether each is within 1e-4 of its
        largest value. No metrics, and a pass with a reason, where the added part cannot be
        evaluated in float64.

    Raises:
        ExecutionError: ONNX Runtime fails.
    """
    outputs = [value.name or "" for value in model.graph.outputs if value.name not in known]
    computed = [name for name in outputs if not _is_given(model, name)]
    comparer = Comparer()
    if not computed:
        return (), PASSED
    try:
        part, borders = _added_part(model, computed, known)
        oracle = Float64Oracle(part, {})
        fed = [spec.name for spec in input_specs(part)]
        session = Session(_showing(model, borders), REFERENCE)
        made_up = MadeUpLabels(model)
        for feed, labels in itertools.islice(feeds, _FEEDS):
            full = complete_feed(feed, labels, session.inputs, made_up)
            values = {**full, **session.run(full)}
            given = {name: values[name] for name in fed}
            _add(comparer, computed, oracle.run(given), values)
    except NoOracleError:
        return (), Verdict(True, (_NOT_HELD,))
    metrics = tuple(comparer.metrics.values())
    verdict = Verdict(not comparer.structure, comparer.structure)
    for each in metrics:
        verdict &= _judge(each)
    return metrics, verdict


def _is_given(model: ir.Model, name: str) -> bool:
    """Whether an output is no more than an input or a constant."""
    value = next(each for each in model.graph.outputs if each.name == name)
    return value.producer() is None


def _added_part(
    model: ir.Model, outputs: list[str], known: Collection[str]
) -> tuple[ir.Model, list[str]]:
    """What computes ``outputs`` from values that were there before; and the names of these."""
    graph = model.graph
    before = {
        name: value
        for name, value in named_values(graph).items()
        if name in known and not value.is_graph_input()
    }
    borders = region_inputs(graph, outputs, before)
    types = {name: ir.TypeAndShape(before[name].type, before[name].shape) for name in borders}
    part, renamed = cut_at(model, outputs, types)
    if any(name != new for name, new in renamed.items()):
        raise NoOracleError
    graphs = (part.graph, *nested_graphs(part.graph))
    called = {node.op_identifier() for each in graphs for node in each}
    if not called & set(part.functions):
        part.functions.clear()
    return part, sorted(borders)


def _showing(model: ir.Model, names: list[str]) -> ir.Model:
    """A copy of ``model`` that returns the values ``names`` as well."""
    copy = model.clone()
    values = named_values(copy.graph)
    shown = {value.name for value in copy.graph.outputs}
    for name in names:
        if name in shown:
            continue
        if values[name].type is None:
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
        copy.graph.outputs.append(values[name])
    return copy


def _add(
    comparer: Comparer, outputs: list[str], truth: dict[str, Array], found: dict[str, Array]
) -> None:
    names = [name for name in outputs if is_float(np.asarray(found[name]).dtype)]
    with np.errstate(over="ignore"):
        exact = {name: truth[name].astype(found[name].dtype) for name in names}
    comparer.add(exact, {name: found[name] for name in names})


def _judge(metrics: OutputMetrics) -> Verdict:
    allowed = _RELATIVE * metrics.max_abs_reference + _ABSOLUTE
    reasons: list[str] = []
    if metrics.nonfinite_mismatches:
        count = metrics.nonfinite_mismatches
        reasons.append(f"output '{metrics.name}': {count} elements are finite on one side only")
    if metrics.max_abs_diff > allowed:
        reasons.append(
            f"output '{metrics.name}': max |difference| from the float64 result is "
            f"{metrics.max_abs_diff:.6g}, wanted <= {allowed:.3g}"
        )
    return Verdict(not reasons, tuple(reasons))
