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
    watch = _Watch.over(feeds, progress, budget, gate_feeds)
    progress.stage("rewriting", len(passes))
    instruments = (*instruments, *watch.instruments)
    outcome = Pipeline(tuple(passes), instruments).run(model.clone())
    return _verified(outcome.model, watch.rows(outcome.results), outcome.results)


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
    progress.stage("rewriting", len(kept))
    rows: list[PassRow] = []
    results: list[tuple[Pass, PassResult]] = []
    waiting = kept
    while True:
        watch = _Watch.over(feeds, progress, None, gate_feeds)
        path = _Checkpoints()
        try:
            outcome = Pipeline(waiting, (path, *watch.instruments)).run(model.clone())
        except BrokenContractError as error:
            advice = "check the model's conditioning, or report the pass if it is wrong"
            name = error.pass_name
            left_out.append(Remark(name, "(whole model)", "", str(error), advice))
            # What ran before any pass of that name changed something stays as it is.
            count, model = path.before(name)
            stays = path.results[:count]
            ran = zip(stays, watch.rows(stays), strict=True)
            rows += [row for (pass_, _), row in ran if pass_.name != name]
            results += [each for each in stays if each[0].name != name]
            kept, waiting = (
                tuple(each for each in passes if each.name != name)
                for passes in (kept, waiting[count:])
            )
        else:
            rows += watch.rows(outcome.results)
            run = _verified(outcome.model, rows, (*results, *outcome.results))
            return replace(run, remarks=(*run.remarks, *left_out)), kept


def _verified(
    model: ir.Model, rows: Sequence[PassRow], results: Sequence[tuple[Pass, PassResult]]
) -> VerifiedRun:
    remarks = [remark for _, result in results for remark in result.remarks]
    return VerifiedRun(model, tuple(rows), distinct_remarks(remarks))


def _computed_rightly(
    model: ir.Model, passes: Sequence[Pass]
) -> tuple[tuple[Pass, ...], list[Remark]]:
    """``passes`` without those whose operator this ONNX Runtime gets wrong; and what was lost."""
    kept = tuple(each for each in passes if each.name != _LAYER_NORM)
    if len(kept) == len(passes) or is_layer_norm_stable():
        return tuple(passes), []
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


@dataclass(frozen=True)
class _Watch:
    """What proves the passes of one run, and times them.

    Attributes:
        clock: How long each pass took.
        gate: Holds each to its contract; None where there is no data.
    """

    clock: _PassClock
    gate: ContractGate | None

    @classmethod
    def over(
        cls, feeds: FeedSource | None, progress: Progress, budget: Budget | None, gate_feeds: int
    ) -> _Watch:
        """For a run on data, or on none."""
        gate: ContractGate | None = None
        if feeds is not None:
            first = feeds.first(gate_feeds)
            gate = ContractGate(first, budget=budget, region_check=check_integer_contract)
        return cls(_PassClock(progress), gate)

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """In the order in which they watch."""
        return (*(() if self.gate is None else (self.gate,)), VerifyEach(), self.clock)

    def rows(self, results: Sequence[tuple[Pass, PassResult]]) -> list[PassRow]:
        """One row for each of the first passes of the run."""
        # One row of evidence for each pass that changed something, in order.
        evidence = iter(self.gate.evidence if self.gate else ())
        rows: list[PassRow] = []
        for (pass_, result), seconds in zip(results, self.clock.seconds, strict=False):
            found = next(evidence, None) if result.modified else None
            proof = found.to_json() if found else {}
            rows.append(PassRow.of(describe_pass(pass_), pass_.contract, result, seconds, proof))
        return rows


@dataclass
class _Checkpoints(BaseInstrument):
    """What the model was before each kind of pass changed it: from where to go on without it.

    Attributes:
        results: Of the passes that kept their contracts, in order.
    """

    results: list[tuple[Pass, PassResult]] = field(default_factory=list[tuple[Pass, PassResult]])
    _now: ir.Model | None = None
    _first: dict[str, tuple[int, ir.Model]] = field(default_factory=dict[str, tuple[int, ir.Model]])

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """See ``Instrument``."""
        self._now = model.clone()

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """See ``Instrument``."""
        if result.modified and self._now is not None:
            self._first.setdefault(pass_.name, (len(self.results), self._now))
        self.results.append((pass_, result))

    def before(self, name: str) -> tuple[int, ir.Model]:
        """How many passes ran before the first ``name`` that changed something, and the model."""
        assert self._now is not None
        return self._first.get(name, (len(self.results), self._now))


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
