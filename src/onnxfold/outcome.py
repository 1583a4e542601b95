"""What a rewriting verb gives back: a model, and the evidence for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxfold.passes.base import Pass
from onnxfold.passes.census import has_codes
from onnxfold.passes.errors import NotEquivalentError
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.islands import Island
from onnxfold.runtime.compiler.plan import Plan
from onnxfold.runtime.compiler.verified import VerifiedRun, model_facts, weakest_contract
from onnxfold.runtime.explain import explain_islands
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.loading import save_model
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.report.content import report_blocks
from onnxfold.runtime.report.losses import loss_facts
from onnxfold.runtime.report.report import Report
from onnxfold.runtime.report.write import write_report
from onnxfold.runtime.specs import input_specs
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import compare_models
from onnxfold.runtime.verify.complete import without_losses

COMPARISON_FEEDS = 64
"""Feeds on which ``run_passes`` compares end to end; ``verify`` takes all there are."""

Model = str | os.PathLike[str] | onnx.ModelProto | ir.Model
"""A path, a protobuf or an IR model."""


@dataclass(frozen=True)
class Outcome:
    """A rewritten model and the evidence for it.

    Attributes:
        model: The rewritten model.
        report: Everything that was done, measured and left alone.
        plan: What was chosen (``compile`` and ``fold``); replay it with their ``plan`` argument.
    """

    model: ir.Model
    report: Report
    plan: Plan | None = None

    def __repr__(self) -> str:
        """One line: a graph and its report would fill the screen."""
        nodes = sum(1 for _ in self.model.graph)
        verdict = "passed" if self.report.passed else "not passed"
        return f"Outcome({self.report.command}: {verdict}, {nodes:,} nodes)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, all of it or nothing.

        Raises:
            UsageError: The place is not writable.
        """
        save_model(self.model, path)

    def save_report(
        self, directory: str | os.PathLike[str], *, result_path: str | os.PathLike[str] = ""
    ) -> None:
        """Write report.json, report.md, report.html and, where there is one, plan.json.

        Args:
            directory: The folder; made where it is missing.
            result_path: Where the model was written, for the report.

        Raises:
            UsageError: The folder is not writable.
        """
        document = self.report.to_json()
        document["result"]["path"] = str(result_path)
        write_report(document, report_blocks(document), Path(directory))
        if self.plan is not None:
            self.plan.save(Path(directory) / "plan.json")


@dataclass(frozen=True)
class Work:
    """A pipeline that ran, on its way to becoming an outcome."""

    command: str
    model: Model
    original: ir.Model
    run: VerifiedRun
    passes: Sequence[Pass]
    budget: Budget | None = None


def compared(work: Work, feeds: FeedSource | None, progress: Progress) -> Outcome:
    """The outcome of a pipeline, compared end to end where there are feeds.

    Raises:
        NotEquivalentError: The result as a whole is not within the weakest contract of the passes.
    """
    run, comparison = work.run, None
    if feeds is not None:
        progress.stage("comparing with the original")
        few = feeds.first(COMPARISON_FEEDS)
        contract = weakest_contract(work.passes)
        comparison = compare_models(work.original, run.model, few, contract, work.budget)
    verdict = comparison.verdict if comparison else None
    if verdict is not None and not verdict.passed and not verdict.inconclusive:
        raise NotEquivalentError("; ".join(verdict.reasons))
    report = Report(
        command=work.command,
        passed=verdict is None or verdict.passed,
        reasons=verdict.reasons if verdict else ("numbers were not checked",),
        source=source_facts(work.model, work.original),
        result=model_facts(run.model),
        data=feeds.to_json() if feeds else {},
        passes=run.rows,
        equivalence=comparison.to_json() if comparison else {},
        islands=_islands(run, feeds, fold_target(work.passes), progress),
        remarks=run.remarks,
        loss=loss_facts(run.model, work.original),
    )
    return Outcome(run.model, report)


def _islands(
    run: VerifiedRun, feeds: FeedSource | None, target: str, progress: Progress
) -> tuple[Island, ...]:
    """What is left in float beside integers; a model without codes has no islands."""
    if not has_codes(run.model):
        return ()
    progress.stage("timing what is left in float")
    bare = without_losses(run.model)
    if feeds is not None:
        # Losses that were taken out leave labels behind.
        names = {spec.name for spec in input_specs(bare)}
        feeds = feeds.without({spec.name for spec in feeds.inputs} - names)
    return explain_islands(bare, run.remarks, feeds, target)


def fold_target(passes: Sequence[Pass]) -> str:
    """What the fold among ``passes`` folds for."""
    return next((each.target for each in passes if isinstance(each, FoldQdq)), "ort")


def source_facts(model: Model, loaded: ir.Model) -> Any:
    """Hash, size and census of a model as it was given: of the file, where it is one."""
    if not isinstance(model, str | os.PathLike):
        return model_facts(loaded)
    size, digest = measure_files(Path(model))
    return replace(model_facts(loaded), path=str(model), sha256=digest, size=size)


def measure_files(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file, or of all files of a folder one after the other."""
    digest, size = hashlib.sha256(), 0
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        size += len(content)
    return size, digest.hexdigest()


def display_name(model: Model, otherwise: str) -> str:
    """What messages call a model: its path, where it has one."""
    return str(model) if isinstance(model, str | os.PathLike) else otherwise
