"""``export``: what a framework saved becomes ONNX, proven against the framework."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir as ir

from onnxfold.live_inputs import example_of
from onnxfold.live_models import save_live
from onnxfold.outcome import Model, Outcome, measure_files
from onnxfold.passes.base import Contract
from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.compiler.verified import model_facts
from onnxfold.runtime.export.front_end import Exported, run_front_end
from onnxfold.runtime.export.proven import Proof, Wanted, prove_export
from onnxfold.runtime.export.sources import CERTAIN, FRAMEWORKS, Source, recognise
from onnxfold.runtime.export.workers.protocol import Request
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.report.report import ModelFacts, PassRow, Report
from onnxfold.runtime.specs import Feed, input_specs

DEFAULT_OPSET = 18
"""The newest that tf2onnx writes."""
PYTHON_VARIABLE = "ONNXFOLD_PYTHON"
_OPSETS = range(13, 22)
_SAMPLES = 16
_ONNX = (bytes, onnx.ModelProto, ir.Model)


def export(
    source: object,
    *,
    kind: str = "auto",
    data: object = None,
    opset: int = DEFAULT_OPSET,
    signature: str | None = None,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    dynamic_batch: bool = False,
    keep_unused_inputs: bool = True,
    layers: bool = False,
    trust_pickle: bool = False,
    python: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Export a framework's model to ONNX, and prove the result against the framework.

    Args:
        source: A SavedModel folder, a .keras, .h5, .tflite, .pt2 or TorchScript file, a pickle of
            scikit-learn; or a live object: a model of Keras, a module of torch, an
            ``ExportedProgram``, an estimator or pipeline of scikit-learn, LightGBM or XGBoost.
        kind: What it is; ``auto`` looks inside.
        data: What to run in both; made up from the shapes if None.
        opset: The version of ai.onnx to write.
        signature: Of a SavedModel; ``serving_default`` if None.
        example_inputs: Of a live module of torch: its arguments, by position or by name.
        inputs: Shapes of the inputs of TorchScript, which keeps none: ``1x3x224x224``, or with a
            type, ``int64:1x16``.
        dynamic_batch: Leave the first dimension open where the source fixed it; proven with two
            samples at once against the framework's answers one by one.
        keep_unused_inputs: Keep inputs that nothing reads: what the framework takes, the exported
            model takes.
        layers: Compare layer by layer too; a failed proof does so by itself, to name the first
            layer that differs.
        trust_pickle: Read a pickle, which can run any program.
        python: The interpreter that has the framework; if None, the one that the environment
            variable ``ONNXFOLD_PYTHON`` names, or else the one that runs this. Live objects always
            take the latter.
        progress: Told how far it is.

    Returns:
        The model with its evidence.

    Raises:
        UsageError: The source is nothing that is known, or its framework is missing.
        InvalidModelError: It is broken, or holds what ONNX has no operator for.
        NotEquivalentError: The exported model computes something else than the framework.
        ExecutionError: The framework crashed.
    """
    if opset not in _OPSETS:
        raise UsageError(f"opset {opset} is not in {_OPSETS.start}..{_OPSETS.stop - 1}")
    options: dict[str, Any] = {
        "signature": signature,
        "inputs": dict(inputs) if inputs else None,
        "dynamic_batch": dynamic_batch,
        "trust_pickle": trust_pickle,
    }
    options = {name: value for name, value in options.items() if value}
    wanted = Wanted(dynamic_batch, keep_unused_inputs, layers)
    if isinstance(source, str | os.PathLike):
        if example_inputs is not None:
            raise UsageError("example_inputs are for live modules: a file brings its own")
        found = _source(Path(cast("str | os.PathLike[str]", source)), kind)
        place = python or os.environ.get(PYTHON_VARIABLE)
        request = Request(found.kind, "", opset, options=options)
        return _export(found, data, request, wanted, place, progress)
    with tempfile.TemporaryDirectory(prefix="onnxfold-live-") as folder:
        live = save_live(source, Path(folder), example_inputs, dynamic_batch=dynamic_batch)
        request = Request(live.source.kind, "", opset, options={**options, **live.options})
        outcome = _export(live.source, data, request, wanted, None, progress)
    facts = replace(outcome.report.source, path=live.name) if outcome.report.source else None
    notes = (*live.notes, *outcome.report.reasons)
    return replace(outcome, report=replace(outcome.report, source=facts, reasons=notes))


def _export(
    found: Source,
    data: object,
    request: Request,
    wanted: Wanted,
    python: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Outcome:
    if found.framework == "onnx":
        raise UsageError(f"{found.path} is ONNX already: use optimize, compile or fold")
    bar = progress or Silent()
    request = replace(request, path=str(found.path))
    bar.stage(f"exporting with {found.framework}")
    exported = run_front_end(found, request, python=python)
    model = _model(exported)
    feeds = None
    if data is not None:
        bar.stage(f"running {found.framework} on the data")
        feeds = open_feeds(data, input_specs(model), limit=_SAMPLES)
        exported = _run_again(found, request, exported, list(feeds), python)
    proof = Proof(found, request, exported, python)
    run, document = prove_export(proof, model, wanted, bar)
    size, digest = measure_files(found.path)
    report = Report(
        command="export",
        passed=document["verdict"]["status"] == "passed",
        reasons=(*exported.answer.notes, *document["verdict"]["reasons"], *document["notes"]),
        source=ModelFacts(str(found.path), digest, size, {}),
        result=model_facts(run.model),
        data={} if feeds is None else feeds.to_json(),
        passes=run.rows,
        equivalence=document,
        remarks=run.remarks,
    )
    return Outcome(run.model, report)


@dataclass(frozen=True)
class Opened:
    """A model to work on.

    Attributes:
        model: The model.
        rows: What was done to get it: of a framework's own model its export, with the proof.
    """

    model: ir.Model
    rows: tuple[PassRow, ...] = ()


def open_model(model: Model, progress: Progress | None = None) -> ir.Model:
    """``load_model``, of a framework's own model too: it is exported and proven on the way.

    Raises:
        InvalidModelError: The model is missing, broken or hostile.
        UsageError: Its framework is missing.
        NotEquivalentError: The exported model computes something else than the framework.
    """
    return open_source(model, progress).model


def open_source(
    model: Model,
    progress: Progress | None = None,
    *,
    data: object = None,
    trust_pickle: bool = False,
    python: str | os.PathLike[str] | None = None,
) -> Opened:
    """``open_model``, with what an export did.

    Args:
        model: A model, or a framework's own: its path, or a live model of Keras, an estimator.
        progress: Told how far it is.
        data: The user's; a live module of torch is traced with the first sample of it.
        trust_pickle: Read a pickle, which can run any program.
        python: The interpreter that has the framework, as for ``export``.

    Raises:
        InvalidModelError: The model is missing, broken or hostile.
        UsageError: Its framework is missing, or it is a pickle that is not trusted.
        NotEquivalentError: The exported model computes something else than the framework.
    """
    is_path = isinstance(model, str | os.PathLike)
    # What is neither is a live object, whatever the types say.
    given = cast("object", model)
    is_onnx = recognise(Path(model)).kind == "onnx" if is_path else isinstance(given, _ONNX)
    if is_onnx:
        return Opened(load_model(model))
    example = None if is_path else example_of(given, data)
    found = export(
        model,
        example_inputs=example,
        trust_pickle=trust_pickle,
        python=python,
        progress=progress,
    )
    proof = found.report.equivalence
    evidence = {key: proof[key] for key in ("reference", "samples", "outputs", "verdict")}
    row = PassRow("export", Contract.REASSOCIATED, True, proof["seconds"], {}, evidence)
    return Opened(found.model, (row, *found.report.passes))


def _source(path: Path, kind: str) -> Source:
    if kind == "auto":
        return recognise(path)
    if kind not in FRAMEWORKS:
        hint = did_you_mean(kind, FRAMEWORKS) or f"; there are {', '.join(FRAMEWORKS)}"
        raise UsageError(f"no kind of model '{kind}'{hint}")
    found = recognise(path)
    if found.kind != kind and {found.kind, kind} & CERTAIN:
        raise UsageError(f"{path} is of kind {found.kind}, not {kind}: leave out what kind it is")
    return found if found.kind == kind else replace(found, kind=kind)


def _model(exported: Exported) -> ir.Model:
    if exported.model is None:
        raise ValueError("a front end that exports returned no model")
    return exported.model


def _run_again(
    source: Source,
    request: Request,
    exported: Exported,
    feeds: Sequence[Feed],
    python: str | os.PathLike[str] | None,
) -> Exported:
    """Run the framework on the data: only now are the model's inputs known by name and type."""
    names = exported.answer
    options = dict(request.options)
    if exported.inside:
        nodes = _model(exported).graph
        options["tensors"] = [value.name for node in nodes for value in node.outputs if value.name]
    again = replace(request, inputs=names.inputs, outputs=names.outputs, options=options)
    ran = run_front_end(source, again, feeds, python=python)
    return replace(ran, model=exported.model, answer=exported.answer)
