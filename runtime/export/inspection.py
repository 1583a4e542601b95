"""Asks a framework what it computes inside, and holds the exported model against that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxfold.passes.errors import OnnxfoldError
from onnxfold.runtime.export.divergence import LayerError, compare_layers, first_divergence
from onnxfold.runtime.export.front_end import Exported, run_front_end
from onnxfold.runtime.export.sources import Source
from onnxfold.runtime.export.workers.protocol import Request
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.compare import Comparison
from onnxfold.runtime.verify.gates import Gate


def inspect_layers(
    source: Source,
    request: Request,
    exported: Exported,
    model: ir.Model,
    gate: Gate,
    feeds: Sequence[Feed],
    python: str | os.PathLike[str] | None = None,
) -> tuple[LayerError, ...]:
    """How far each layer of ``model`` is from the framework's, in the model's order.

    Args:
        source: What was exported.
        request: How.
        exported: What came of it.
        model: As the exporter wrote it: passes may rename what a framework knows by name.
        gate: What judges.
        feeds: What to run in both, by the model's names.
        python: The interpreter that has the framework.

    Returns:
        Nothing where the framework cannot look inside.

    Raises:
        OnnxfoldError: The framework or the model does not run.
    """
    tensors = [value.name for node in model.graph for value in node.outputs if value.name]
    names = exported.answer
    again = replace(
        request,
        inputs=names.inputs,
        outputs=names.outputs,
        options={**request.options, "tensors": tensors},
    )
    ran = run_front_end(source, again, feeds, python=python)
    if not ran.inside:
        return ()
    # The ends are compared too: they have the framework's names in ONNX alone.
    pairs = zip(ran.inside, ran.expected, strict=True)
    values = [{**inside, **expected} for inside, expected in pairs]
    return compare_layers(model, ran.feeds, values, names.layers, gate)


def name_divergence(
    source: Source,
    request: Request,
    exported: Exported,
    model: ir.Model,
    gate: Gate,
    comparison: Comparison,
    python: str | os.PathLike[str] | None = None,
) -> str:
    """Which layer a failed comparison began to differ in, in words for its message; may be empty.

    Takes what ``inspect_layers`` takes; only the worst sample is run.
    """
    worst = [each.worst.sample for each in comparison.outputs if each.worst is not None]
    sample = min(worst[:1] or [0])
    if sample >= len(exported.feeds):
        return ""
    try:
        errors = inspect_layers(
            source, request, exported, model, gate, [exported.feeds[sample]], python
        )
    except OnnxfoldError:
        # That the export is wrong is known already, and says more than that nobody knows where.
        return ""
    first = first_divergence(errors)
    return "" if first is None else f"the first layer that differs is {first}"
