"""Holds every pass of a pipeline to its contract, while the pipeline runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass, PassResult
from onnxfold.passes.errors import BrokenContractError
from onnxfold.passes.io_types import float_edges, with_float_io
from onnxfold.passes.pipeline import BaseInstrument
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.added import check_added, is_runnable
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import (
    add_outputs,
    declared_differences,
    judge,
    naming,
)
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.complete import MadeUpLabels, complete_feed, labelled
from onnxfold.runtime.verify.drift import DriftProbe
from onnxfold.runtime.verify.gates import Verdict
from onnxfold.runtime.verify.metrics import OutputMetrics
from onnxfold.runtime.verify.oracle import nearer_to_truth
from onnxfold.runtime.verify.region_gate import RegionEvidence
from onnxfold.runtime.verify.softmax import LogitsSession
from onnxfold.runtime.verify.structure import flatten_outputs

_CACHE_BYTES = 256 << 20
_NEEDING_THE_MODEL = (Contract.INTEGER, Contract.REASSOCIATED)

Outputs: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
RegionCheck: TypeAlias = Callable[[ir.Model, ir.Model, FeedSource | Sequence[Feed]], RegionEvidence]
"""Compares (before, after) region by region on feeds."""


@dataclass(frozen=True)
class PassEvidence:
    """What the gate of one pass saw.

    Attributes:
        pass_name: The pass.
        contract: What it promised.
        outputs: Metrics of each output, after against before the pass, optimizations off.
        verdict: Whether the promise was kept.
        samples: Feeds compared.
        seconds: What verifying took.
        regions: What was seen operator by operator, each fed with the original's tensors; None
            where that was not looked at.
        added: Metrics of each output that an additive pass added, against float64.
    """

    pass_name: str
    contract: Contract
    outputs: tuple[OutputMetrics, ...]
    verdict: Verdict
    samples: int
    seconds: float
    regions: RegionEvidence | None = None
    added: tuple[OutputMetrics, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "pass": self.pass_name,
            "contract": self.contract.value,
            "outputs": [each.to_json() for each in self.outputs],
            "verdict": self.verdict.to_json(),
            "samples": self.samples,
            "seconds": self.seconds,
            "regions": None if self.regions is None else self.regions.to_json(),
            "added": [each.to_json() for each in self.added],
        }


class ContractGate(BaseInstrument):
    """An instrument that runs the model before and after each pass that changed something.

    Attributes:
        evidence: One row per pass that changed the model, in order.
    """

    def __init__(
        self,
        feeds: FeedSource | Sequence[Feed],
        budget: Budget | None = None,
        cache_bytes: int = _CACHE_BYTES,
        region_check: RegionCheck | None = None,
    ) -> None:
        """Watch a pipeline.

        Args:
            feeds: What to feed.
            budget: For passes with contract APPROXIMATE; the default budget if None.
            cache_bytes: Outputs are kept from one pass to the next up to this size.
            region_check: Held against INTEGER passes as well, operator by operator, fed with the
                original's tensors (``region_gate.check_integer_contract``): it sees what the end
                of a deep network hides in its own noise.
        """
        self.evidence: list[PassEvidence] = []
        self._feeds = feeds
        self._budget = budget
        self._cache_bytes = cache_bytes
        self._region_check = region_check
        self._snapshot: _Snapshot | None = None
        self._floats: frozenset[str] | None = None

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Remember what the model computes before ``pass_``."""
        if self._floats is None:
            self._floats = float_edges(model)
        known = self._snapshot
        if (known is None or known.model is not model) and not is_runnable(model):
            self._snapshot = None
            return
        if known is None or known.model is not model:
            known = _Snapshot(model, self._with_float_io(model), self._cache_bytes)
        # Drift, regions and oracle need the model itself, and the pass is about to change it.
        original = model.clone() if pass_.contract in _NEEDING_THE_MODEL else None
        known.original = None if original is None else self._with_float_io(original)
        self._snapshot = known

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """Hold ``pass_`` to its contract.

        Raises:
            BrokenContractError: It broke it; names pass, output, metric, what was got and wanted.
            ExecutionError: The model no longer runs.
        """
        before = self._snapshot
        if not result.modified:
            return
        if before is None or not is_runnable(model):
            self.evidence.append(_unjudged(pass_, is_postponed=before is not None))
            return
        started = time.perf_counter()
        # What takes losses out is held to what is left, as what adds them is to what was there.
        stripped = pass_.restores_interface
        additive = pass_.contract is Contract.ADDITIVE or stripped
        with naming(f"after pass {pass_.name}"):
            after = _Snapshot(model, self._with_float_io(model), self._cache_bytes)
        comparer = Comparer(additive=additive)
        pair = (after.session, before.session) if stripped else (before.session, after.session)
        comparer.note(*declared_differences(*pair, additive=additive))
        softmaxes: frozenset[str] = frozenset()
        if pass_.contract is Contract.REASSOCIATED:
            softmaxes = frozenset(before.session.names) & frozenset(after.session.names)
        feeds = () if comparer.structure else labelled(self._feeds)
        for sample, (feed, labels) in enumerate(feeds):
            old = before.run(sample, feed, labels, softmaxes)
            with naming(f"after pass {pass_.name}"):
                new = after.run(sample, feed, labels, softmaxes)
                add_outputs(comparer, *((new, old) if stripped else (old, new)))
        drift = (
            DriftProbe(self._with_float_io(model), self._feeds)
            if before.original is None
            else DriftProbe(before.original, self._feeds, opened=before.session)
        )
        verdict = judge(comparer, pass_.contract, self._budget, softmaxes, drift)
        if not verdict.passed and not comparer.structure:
            truth = self._ask_oracle(pass_, before, after, softmaxes)
            verdict = truth if truth is not None and truth.passed else verdict
        added: tuple[OutputMetrics, ...] = ()
        if pass_.contract is Contract.ADDITIVE and verdict.passed:
            with naming(f"after pass {pass_.name}"):
                now = self._with_float_io(model)
                added, verdict = check_added(now, before.names, labelled(self._feeds))
        original, self._snapshot = before.original, None
        del before, pair, drift  # a session holds the weights
        regions = None
        checked = self._region_check is not None and pass_.contract is Contract.INTEGER
        if checked and self._region_check is not None and original is not None:
            with naming(f"after pass {pass_.name}"):
                now = self._with_float_io(model)
                regions = self._region_check(original, now, self._feeds)
            if not verdict.passed and not comparer.structure and regions.is_exact:
                verdict = regions.excuse(verdict)
            verdict &= Verdict(not regions.reasons, regions.reasons)
        self.evidence.append(
            PassEvidence(
                pass_name=pass_.name,
                contract=pass_.contract,
                outputs=tuple(comparer.metrics.values()),
                verdict=verdict,
                samples=comparer.samples,
                seconds=time.perf_counter() - started,
                regions=regions,
                added=added,
            )
        )
        self._snapshot = after
        if not verdict.passed and not verdict.inconclusive:
            reasons = "; ".join(verdict.reasons)
            promise = pass_.contract.value
            message = f"pass {pass_.name} broke its contract ({promise}): {reasons}"
            raise BrokenContractError(message, pass_.name)

    def _with_float_io(self, model: ir.Model) -> ir.Model:
        """``model`` as the feeds need it: of the types that the first one had."""
        return with_float_io(model, self._floats or ())

    def _ask_oracle(
        self, pass_: Pass, before: _Snapshot, after: _Snapshot, softmaxes: frozenset[str]
    ) -> Verdict | None:
        """What the float64 oracle says of a pass that only reorders arithmetic; None if nothing."""
        if pass_.contract is not Contract.REASSOCIATED or before.original is None:
            return None
        names = {name: before.session.names[name] for name in sorted(softmaxes)}
        samples = (
            (
                feed,
                before.run(number, feed, labels, softmaxes),
                [after.run(number, feed, labels, softmaxes)],
            )
            for number, (feed, labels) in enumerate(labelled(self._feeds))
        )
        return nearer_to_truth(before.original, names, samples)

    def pass_failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        """Forget the model: it may be invalid now."""
        self._snapshot = None


class _Snapshot:
    """What a model computes at one point of the pipeline, whatever happens to it afterwards.

    ONNX Runtime has its own copy of the model; outputs computed once are kept, up to a size, so
    that the candidate of one pass is the reference of the next without running again.
    """

    def __init__(self, model: ir.Model, comparable: ir.Model, cache_bytes: int) -> None:
        self.model = model
        self.original: ir.Model | None = None
        self.names = frozenset(_names(comparable))
        self.session = LogitsSession.open(comparable)
        self._made_up = MadeUpLabels(comparable)
        self._room = cache_bytes
        self._outputs: dict[int, Outputs] = {}

    def run(self, sample: int, feed: Feed, labels: Feed, softmaxes: frozenset[str]) -> Outputs:
        """The outputs for one feed, and the values before those ``softmaxes``."""
        outputs, before = self._outputs.get(sample) or self._run(sample, feed, labels)
        return outputs, {name: value for name, value in before.items() if name in softmaxes}

    def _run(self, sample: int, feed: Feed, labels: Feed) -> Outputs:
        result = self.session.run(self._complete(feed, labels))
        arrays = [*flatten_outputs(result[0]).values(), *result[1].values()]
        size = sum(array.nbytes for array in arrays)
        if size <= self._room:
            self._room -= size
            self._outputs[sample] = result
        return result

    def _complete(self, feed: Feed, labels: Feed) -> Feed:
        return complete_feed(feed, labels, self.session.session.inputs, self._made_up)


def _unjudged(pass_: Pass, *, is_postponed: bool) -> PassEvidence:
    """Nothing was run: ONNX Runtime has no kernel for what the pass added, or was given."""
    reason = "ONNX Runtime has no kernel for what the model held before: nothing to compare with"
    if is_postponed:
        reason = "ONNX Runtime has no kernel for what it added: judged with the pass that lowers it"
    return PassEvidence(pass_.name, pass_.contract, (), Verdict(True, (reason,)), 0, 0.0)


def _names(model: ir.Model) -> Iterator[str]:
    """The names of all values of the main graph."""
    graph = model.graph
    yield from (value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield from (value.name or "" for value in node.outputs)
