"""From what an exporter wrote to a model that is clean, named, and proven."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxfold.passes.errors import (
    ExecutionError,
    InvalidModelError,
    NotEquivalentError,
    UsageError,
)
from onnxfold.passes.layers import record_layers
from onnxfold.passes.presets import EXPORTED
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.compiler.verified import VerifiedRun, run_tolerant
from onnxfold.runtime.export.front_end import Exported
from onnxfold.runtime.export.inspection import (
    LOOKED_INTO,
    inspect_layers,
    judge_inside,
    name_divergence,
)
from onnxfold.runtime.export.proof import EstimatorGate, FrameworkGate, prove
from onnxfold.runtime.export.rows import has_open_batch, joined_samples
from onnxfold.runtime.export.sources import Source
from onnxfold.runtime.export.workers.protocol import Request
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.report.report import distinct_remarks
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify.compare import Comparison
from onnxfold.runtime.verify.gates import Gate

_NAMES = "name-dimensions,readable-names"


@dataclass(frozen=True)
class Wanted:
    """What is asked of the exported model.

    Attributes:
        dynamic_batch: That it takes any number of samples.
        keep_unused_inputs: That it takes what nothing reads.
        layers: That its layers are compared too.
    """

    dynamic_batch: bool = False
    keep_unused_inputs: bool = True
    layers: bool = False


@dataclass(frozen=True)
class Proof:
    """What an export is held against.

    Attributes:
        source: What was exported.
        request: How.
        exported: What came of it, and what the framework computes.
        python: The interpreter that has the framework.
    """

    source: Source
    request: Request
    exported: Exported
    python: str | os.PathLike[str] | None = None

    @property
    def name(self) -> str:
        """The source, with its framework, for reports."""
        versions = self.exported.answer.versions.items()
        return (
            f"{self.source.path} ({', '.join(f'{name} {version}' for name, version in versions)})"
        )

    @property
    def gate(self) -> Gate:
        """What judges."""
        return EstimatorGate() if self.source.framework == "sklearn" else FrameworkGate()


def prove_export(
    proof: Proof, model: ir.Model, wanted: Wanted, bar: Progress
) -> tuple[VerifiedRun, dict[str, Any]]:
    """Clean up ``model``, name what is in it, and hold it against its framework.

    Args:
        proof: What it is held against.
        model: As the exporter wrote it; its nodes get the names of their layers.
        wanted: What is asked of it.
        bar: Told how far it is.

    Returns:
        The clean model with what was done to it, and the comparison, for the report.

    Raises:
        NotEquivalentError: It computes something else; the message names the first layer that does.
        InvalidModelError: It does not run.
        UsageError: Its batch cannot be left open.
    """
    record_layers(model, proof.exported.answer.layers)
    given = model
    if not wanted.keep_unused_inputs:
        given = model.clone()
        (drop,) = parse_passes("drop-unused-inputs")
        drop.run(given)
    names = {value.name for value in given.graph.inputs}
    exported = proof.exported
    feeds = [{key: feed[key] for key in feed if key in names} for feed in exported.feeds]
    bar.stage("comparing with the framework")
    # Before the clean-up, which takes a transpose of one sample for a reshape.
    opened = "dynamic-batch," if wanted.dynamic_batch else ""
    try:
        run, clean = _cleaned(given, f"{opened}{EXPORTED}", feeds, bar)
        comparison = prove(
            run.model, proof.name, feeds, exported.expected, exported.others, gate=proof.gate
        )
    except ExecutionError as error:
        words = f"ONNX Runtime does not run what the exporter made of it: {error}"
        raise InvalidModelError(f"{proof.source.path}: {words}") from error
    except UsageError as error:
        raise UsageError(f"{proof.source.path}: {error}") from error
    if not comparison.verdict.passed:
        raise NotEquivalentError(_what_differs(proof, model, comparison))
    inside = judge_inside(
        *(proof.source, proof.request, exported, [model, clean], comparison.verdict),
        proof.python,
    )
    if not inside.verdict.passed and not inside.verdict.inconclusive:
        raise NotEquivalentError(f"{proof.source.path}: {'; '.join(inside.verdict.reasons)}")
    comparison = replace(comparison, verdict=inside.verdict)
    if wanted.dynamic_batch:
        _prove_rows(proof, run.model, feeds)
    document = comparison.to_json() | {"candidate": run.model.graph.name or "model"}
    document |= {"notes": list(inside.notes)}
    if inside.segments is not None:
        compared, telling = inside.segments.compared, inside.segments.telling
        document["inside"] = {"compared": len(compared), "telling": telling}
    if wanted.layers:
        some = proof.exported.feeds[:LOOKED_INTO]
        errors = inspect_layers(
            proof.source, proof.request, exported, model, proof.gate, some, proof.python
        )
        document["layers"] = [each.to_json() for each in errors]
    return run, document


def _cleaned(
    model: ir.Model, passes: str, feeds: Sequence[dict[str, Any]], bar: Progress
) -> tuple[VerifiedRun, ir.Model]:
    """The clean model, and the same with the exporter's names."""
    source = open_feeds(feeds, input_specs(model))
    run, _ = run_tolerant(model, parse_passes(passes), source, bar)
    clean = run.model.clone()
    named, _ = run_tolerant(run.model, parse_passes(_NAMES), source, bar)
    rows, remarks = (*run.rows, *named.rows), (*run.remarks, *named.remarks)
    return VerifiedRun(named.model, rows, distinct_remarks(remarks)), clean


def _what_differs(proof: Proof, model: ir.Model, comparison: Comparison) -> str:
    where = name_divergence(
        proof.source, proof.request, proof.exported, model, proof.gate, comparison, proof.python
    )
    reasons = (*comparison.verdict.reasons, *([where] if where else []))
    return f"{proof.source.path}: {'; '.join(reasons)}"


def _prove_rows(proof: Proof, model: ir.Model, feeds: Sequence[dict[str, Any]]) -> None:
    """Hold two samples at once against what the framework makes of one after the other.

    Raises:
        NotEquivalentError: They are not alike.
        InvalidModelError: The model does not run on them.
    """
    if not has_open_batch(model):
        raise UsageError(f"{proof.source.path}: no input has dimensions: no batch to leave open")
    exported = proof.exported
    try:
        given, expected = joined_samples(model, feeds, exported.expected)
        others = [joined_samples(model, feeds, exported.others)[1]] if exported.others else []
        found = prove(model, proof.name, [given], [expected], others, gate=proof.gate)
    except (ExecutionError, InvalidModelError, ValueError) as error:
        raise InvalidModelError(
            f"{proof.source.path}: its batch cannot be left open: {error}"
        ) from error
    if not found.verdict.passed:
        reasons = "; ".join(found.verdict.reasons)
        raise NotEquivalentError(
            f"{proof.source.path}: its batch cannot be left open, because samples that are run "
            f"together come out otherwise: {reasons}"
        )
