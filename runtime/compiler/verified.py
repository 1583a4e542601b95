"""Runs passes with every proof attached: structure after each pass, numbers by its contract."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass, PassResult
from onnxfold.passes.census import take_census
from onnxfold.passes.errors import BrokenContractError
from onnxfold.passes.instruments import VerifyEach
from onnxfold.passes.pipeline import BaseInstrument, Instrument, Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.remark import Remark
from onnxfold.passes.serialization import model_bytes
from onnxfold.passes.spec import describe_pass
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.report.report import ModelFacts, PassRow, distinct_remarks
from onnxfold.runtime.session import is_layer_norm_stable, version
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.pass_gate import ContractGate
from onnxfold.runtime.verify.region_gate import check_integer_contract

GATE_FEEDS = 4
"""Feeds on which each pass is checked; the end-to-end comparison uses all."""

_LAYER_NORM = "fuse-layer-norm"

_WEAKEST_FIRST = (
    Contract.APPROXIMATE,
    Contract.INTEGER,
    Contract.REASSOCIATED,
    Contract.ADDITIVE,
    Contract.EXACT,
)


@dataclass(frozen=True)
class VerifiedRun:
    """A rewritten model and how it came about.

    Attributes:
        model: The rewritten model.
        rows: One row per pass.
        remarks: What the passes left alone, and why; the last word on each node.
    """

    model: ir.Model
    rows: tuple[PassRow, ...]
    remarks: tuple[Remark, ...]


def run_verified(
    model: ir.Model,
    passes: Sequence[Pass],
    feeds: FeedSource | None,
    progress: Progress,
    *,
    budget: Budget | None = None,
    instruments: Sequence[Instrument] = (),
    gate_feeds: int = GATE_FEEDS,
) -> VerifiedRun:
    """Run ``passes`` on a copy of ``model``.

    Args:
        model: Not modified.
        passes: In order.
        feeds: What the contract gates run on; None leaves only the structural verifier.
        progress: Told of each pass.
        budget: For the gates of APPROXIMATE passes.
        instruments: Watch as well; called before the verifier.
        gate_feeds: How many of the feeds the gates run on.

    Raises:
        NotEquivalentError: A pass broke its contract.
        PassError: A pass failed or left an invalid model.
    """
    clock = _PassClock(progress)
    watchers: list[Instrument] = [*instruments]
    gate: ContractGate | None = None
    if feeds is not None:
        first = feeds.first(gate_feeds)
        gate = ContractGate(first, budget=budget, region_check=check_integer_contract)
        watchers.append(gate)
    watchers += [VerifyEach(), clock]
    progress.stage("rewriting", len(passes))
    outcome = Pipeline(tuple(passes), tuple(watchers)).run(model.clone())
    # One row of evidence for each pass that changed something, in order.
    evidence = iter(gate.evidence if gate else ())
    rows: list[PassRow] = []
    for (pass_, result), seconds in zip(outcome.results, clock.seconds, strict=True):
        found = next(evidence, None) if result.modified else None
        proof = found.to_json() if found else {}
        rows.append(PassRow.of(describe_pass(pass_), pass_.contract, result, seconds, proof))
    remarks = [remark for _, result in outcome.results for remark in result.remarks]
    return VerifiedRun(outcome.model, tuple(rows), distinct_remarks(remarks))


def run_tolerant(
    model: ir.Model,
    passes: Sequence[Pass],
    feeds: FeedSource,
    progress: Progress,
    *,
    gate_feeds: int = GATE_FEEDS,
) -> tuple[VerifiedRun, tuple[Pass, ...]]:
    """As ``run_verified``, but leave out passes that break their contract on this model and data.

    Rounding can grow through a badly conditioned model: what is within a contract elsewhere may
    not be here, and the model then does without that pass.

    Returns:
        The run, with a remark for each pass left out; and the passes that were kept.

    Raises:
        PassError: A pass failed or left an invalid model.
    """
    kept, left_out = _computed_rightly(model, passes)
    while True:
        try:
            run = run_verified(model, kept, feeds, progress, gate_feeds=gate_feeds)
        except BrokenContractError as error:
            advice = "check the model's conditioning, or report the pass if it is wrong"
            left_out.append(Remark(error.pass_name, "(whole model)", "", str(error), advice))
            kept = tuple(each for each in kept if each.name != error.pass_name)
        else:
            return replace(run, remarks=(*run.remarks, *left_out)), kept


def _computed_rightly(
    model: ir.Model, passes: Sequence[Pass]
) -> tuple[tuple[Pass, ...], list[Remark]]:
    """``passes`` without those whose operator this ONNX Runtime gets wrong; and what was lost."""
    if is_layer_norm_stable():
        return tuple(passes), []
    kept = tuple(each for each in passes if each.name != _LAYER_NORM)
    done = Pipeline(tuple(passes)).run(model.clone())
    if not any(result.modified for pass_, result in done.results if pass_.name == _LAYER_NORM):
        return kept, []
    reason = f"onnxruntime {version()} computes LayerNormalization wrongly where the mean is large"
    return kept, [Remark(_LAYER_NORM, "(whole model)", "", reason, "use a newer onnxruntime")]


def weakest_contract(passes: Sequence[Pass]) -> Contract:
    """The contract that holds for all passes together."""
    found = {pass_.contract for pass_ in passes}
    return next((each for each in _WEAKEST_FIRST if each in found), Contract.EXACT)


def model_facts(model: ir.Model, path: str = "") -> ModelFacts:
    """Hash, size and census of a model."""
    data = model_bytes(model)
    known = Pipeline(parse_passes("infer-shapes")).run(model.clone()).model
    digest = hashlib.sha256(data).hexdigest()
    return ModelFacts(path, digest, len(data), take_census(known).to_json())


@dataclass
class _PassClock(BaseInstrument):
    """Times each pass, without the instruments outside of it, and moves the progress bar."""

    progress: Progress
    seconds: list[float] = field(default_factory=list[float])
    _started: float = 0.0

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """See ``Instrument``."""
        self._started = time.perf_counter()

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """See ``Instrument``."""
        self.seconds.append(time.perf_counter() - self._started)
        self.progress.advance()
