"""Asks a framework what it computes inside, and holds the exported model against that.

Without being asked where its answers prove little: where they are saturated, or where its own
kernels differ so much that an error could hide behind that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxfold.passes.errors import OnnxfoldError
from onnxfold.runtime.export.divergence import LayerError, compare_layers, first_divergence
from onnxfold.runtime.export.evidence import says_nothing, weak_outputs
from onnxfold.runtime.export.front_end import Exported, run_front_end
from onnxfold.runtime.export.segments import Segments, compare_segments
from onnxfold.runtime.export.sources import Source
from onnxfold.runtime.export.workers.protocol import Request
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.compare import Comparison
from onnxfold.runtime.verify.cut import region_inputs
from onnxfold.runtime.verify.gates import Gate, Verdict

LOOKED_INTO = 2
"""Samples whose layers are compared."""


@dataclass(frozen=True)
class Inside:
    """What was seen of the layers, where the ends alone prove little.

    Attributes:
        verdict: With what the layers say.
        notes: What the user should know.
        segments: What was compared; None where there was no need to.
    """

    verdict: Verdict
    notes: tuple[str, ...] = ()
    segments: Segments | None = None


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
    given, values = _values_inside(source, request, exported, model, feeds, python)
    return compare_layers(model, given, values, exported.answer.layers, gate) if values else ()


def judge_inside(
    source: Source,
    request: Request,
    exported: Exported,
    models: Sequence[ir.Model],
    verdict: Verdict,
    python: str | os.PathLike[str] | None = None,
) -> Inside:
    """What an export that passed at its ends comes to where these prove little.

    Args:
        source: What was exported.
        request: How.
        exported: What came of it.
        models: As the exporter wrote it, and later forms with its names.
        verdict: What the ends say.
        python: The interpreter that has the framework.

    Raises:
        ExecutionError: A model does not run.
    """
    weak = [each for each in weak_outputs(exported.expected) if _is_fed(models[0], each.name)]
    # Kernels that differ among themselves excuse much; where looking inside costs little, do.
    if not weak and not (exported.others and exported.inside):
        return Inside(verdict)
    given, values = exported.feeds[: len(exported.inside)], _with_ends(exported)
    if not values:
        # That nothing can be seen inside is no error of the export.
        with suppress(OnnxfoldError):
            some = exported.feeds[:LOOKED_INTO]
            given, values = _values_inside(source, request, exported, models[0], some, python)
    layers = exported.answer.layers
    found = [compare_segments(each, given, values, layers) for each in models if values]
    segments = found[0] if found else Segments()
    fault = next((each.fault for each in found if each.fault is not None), None)
    if fault is not None:
        reason = f"the outputs agree, but the first layer that differs is {fault}"
        return Inside(Verdict(False, (reason,)), (), segments)
    words = "; ".join(map(str, weak))
    if weak and not segments.telling:
        reason = f"{words}; and nothing inside that says more could be compared: give --data"
        # A classifier that is sure of nearly all samples is one that works.
        if not says_nothing(exported.expected):
            return Inside(verdict, (reason,), segments)
        return Inside(verdict & Verdict(False, (reason,), inconclusive=True), (), segments)
    count = len(segments.compared)
    note = f"{words}; {count} tensors inside were held against the framework's own, layer by layer"
    return Inside(verdict, (note,) if weak else (), segments)


def _is_fed(model: ir.Model, output: str) -> bool:
    """Whether an output depends on an input at all."""
    if not any(value.name == output for node in model.graph for value in node.outputs):
        return False
    inputs = {value.name or "" for value in model.graph.inputs}
    return bool(region_inputs(model.graph, [output], inputs))


def _values_inside(
    source: Source,
    request: Request,
    exported: Exported,
    model: ir.Model,
    feeds: Sequence[Feed],
    python: str | os.PathLike[str] | None,
) -> tuple[tuple[Feed, ...], list[Feed]]:
    """What the framework makes of ``feeds``, inside and at the ends; nothing where it can't tell.

    Raises:
        OnnxfoldError: The framework does not run.
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
    return ran.feeds, _with_ends(ran)


def _with_ends(ran: Exported) -> list[Feed]:
    """The values inside with those of the outputs, which have the framework's names in ONNX alone.

    Of several kernels the ones that were looked into count.
    """
    return [{**end, **inside} for inside, end in zip(ran.inside, ran.expected, strict=False)]


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
