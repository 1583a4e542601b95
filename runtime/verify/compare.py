"""Compares two models under the oracle configurations and says whether a contract holds."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import ExecutionError
from onnxfold.passes.io_types import float_edges, read_io_types, with_float_io
from onnxfold.passes.loss.record import KEY as LOSS_KEY
from onnxfold.passes.train.manifest import KEY as TRAINING_KEY
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig
from onnxfold.runtime.specs import Feed, ModelLike, TensorSpec, input_specs, load_ir
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.complete import MadeUpLabels, complete_feed, labelled, reduced
from onnxfold.runtime.verify.drift import DriftProbe
from onnxfold.runtime.verify.gates import Gate, Verdict, deployment_gate_for, gate_for
from onnxfold.runtime.verify.loss_comparison import LossDifference
from onnxfold.runtime.verify.metrics import OutputMetrics
from onnxfold.runtime.verify.oracle import OracleSample, nearer_to_truth
from onnxfold.runtime.verify.region_gate import RegionEvidence, check_integer_contract
from onnxfold.runtime.verify.softmax import (
    LogitsSession,
    before_softmax,
    softmax_inputs,
    softmax_outputs,
)
from onnxfold.runtime.verify.structure import signature_differences

_ORACLE_FEEDS = 16
_REGION_FEEDS = 4


@dataclass(frozen=True)
class Comparison:
    """The evidence that a candidate computes what a reference computes, or that it does not.

    Attributes:
        reference: The original model, as messages call it.
        candidate: The rewritten one.
        contract: What was promised.
        budget: What an APPROXIMATE change may cost.
        samples: Feeds compared.
        feeds: What is known of the feeds: description, sha256, generated, count.
        outputs: Per output, candidate against reference, optimizations off.
        deployment: The same with the candidate as it will be deployed: optimizations on.
        drift: The reference itself, optimizations on against off; only where it was asked for.
        verdict: Whether the contract holds.
        configs: Optimizations off, and as deployed.
        seconds: How long it took.
        worst_input: What a search for the worst input found; None where none was made.
        losses: How much better or worse the candidate is in the units of losses.
        regions: Of an INTEGER candidate whose outputs are further apart than its contract allows:
            operator by operator, each fed with the reference's tensors; None where not looked at.
    """

    reference: str
    candidate: str
    contract: Contract
    budget: Budget | None
    samples: int
    feeds: Mapping[str, Any]
    outputs: tuple[OutputMetrics, ...]
    deployment: tuple[OutputMetrics, ...]
    drift: tuple[OutputMetrics, ...]
    verdict: Verdict
    configs: tuple[SessionConfig, SessionConfig]
    seconds: float
    worst_input: Mapping[str, Any] | None = None
    losses: tuple[LossDifference, ...] = ()
    regions: RegionEvidence | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "contract": self.contract.value,
            "budget": None if self.budget is None else self.budget.to_json(),
            "samples": self.samples,
            "feeds": dict(self.feeds),
            "outputs": [each.to_json() for each in self.outputs],
            "deployment": [each.to_json() for each in self.deployment],
            "drift": [each.to_json() for each in self.drift],
            "verdict": self.verdict.to_json(),
            "configs": [config.to_json() for config in self.configs],
            "seconds": self.seconds,
            "worst_input": None if self.worst_input is None else dict(self.worst_input),
            "losses": [each.to_json() for each in self.losses],
            "regions": None if self.regions is None else self.regions.to_json(),
        }


def compare_models(
    reference: ModelLike,
    candidate: ModelLike,
    feeds: FeedSource | Sequence[Feed],
    contract: Contract,
    budget: Budget | None = None,
    configs: tuple[SessionConfig, SessionConfig] = (REFERENCE, DEPLOYMENT),
    states: frozenset[str] = frozenset(),
    oracle_feeds: int = _ORACLE_FEEDS,
) -> Comparison:
    """Compare ``candidate`` with ``reference`` on every feed, keeping metrics only.

    The reference runs with optimizations off, the candidate both ways. ONNX Runtime's own
    optimizations move outputs too: where the candidate fails with them on, or an INTEGER one at
    all, the reference's own drift between the two configurations is measured and excused. Where
    that is not enough, an INTEGER candidate is looked at operator by operator: what a deep network
    makes of a value half-way between two codes is no fault where each operator is exact.

    Args:
        reference: The original model.
        candidate: The rewritten model.
        feeds: What to feed; iterated again where the drift is needed.
        contract: What the candidate promises.
        budget: For APPROXIMATE; the default budget if None.
        configs: Optimizations off, and as deployed.
        states: For APPROXIMATE: outputs whose noise the caller judges, by what it leads to.
        oracle_feeds: On how many feeds float64 is asked, where only rounding can be excused.

    Raises:
        InconclusiveError: There was nothing to compare.
        ExecutionError: One of the models does not load or run.
        UsageError: The feeds do not suit the reference.
    """
    started = time.perf_counter()
    off, on = configs
    with naming("candidate"):
        candidate = comparable(reference, candidate)
    if _is_stripped(reference, candidate):
        reference, feeds = _before_additions(load_ir(reference), load_ir(candidate), feeds)
    made_up = MadeUpLabels(load_ir(candidate))
    old, new = open_pair(reference, candidate, contract, off)
    with naming("candidate"):
        deployed = Session(candidate, replace(on, spinning=False))
    additive = contract is Contract.ADDITIVE
    plain, optimized = Comparer(additive=additive), Comparer(additive=additive)
    plain.note(*declared_differences(old, new, additive=additive))
    for feed, labels in () if plain.structure else labelled(feeds):
        outputs, before = old.run(feed)
        full_feed = complete_feed(feed, labels, new.session.inputs, made_up)
        with naming("candidate"):
            add_outputs(plain, (outputs, before), new.run(full_feed))
            optimized.add(outputs, deployed.run(full_feed))

    judged_before = frozenset(old.names) & frozenset(new.names)
    labels_of_both = old.session.label, new.session.label
    sessions = (old, new, deployed) if contract is Contract.REASSOCIATED else None
    del new, deployed  # each holds the weights
    drift = DriftProbe(reference, feeds, configs, old)
    verdict = judge(plain, contract, budget, judged_before, drift, states)
    regions: RegionEvidence | None = None
    if not plain.structure:
        after_softmax = softmax_outputs(load_ir(reference))
        gate = deployment_gate_for(contract, budget, after_softmax, states)
        verdict &= _judge_deployed(optimized, contract, gate, drift, on)
        if not verdict.passed and contract is Contract.INTEGER:
            worst = [each.worst for each in (*plain.metrics.values(), *optimized.metrics.values())]
            numbers = {each.sample for each in worst if each is not None}
            few = _of_numbers(feeds, numbers, old.session.inputs)
            regions = check_integer_contract(load_ir(reference), load_ir(candidate), few)
            # As deployed it may be as far off as the operators that were seen make it.
            deployed_alike = optimized.judge(gate, plain.metrics)
            verdict = regions.excuse(verdict) if deployed_alike.passed else verdict
    if not verdict.passed and sessions is not None and not plain.structure:
        names = {name: old.names[name] for name in sorted(judged_before)}
        truth = _ask_oracle(reference, names, islice(labelled(feeds), oracle_feeds), sessions)
        verdict = truth if truth is not None and truth.passed else verdict
    return Comparison(
        reference=labels_of_both[0],
        candidate=labels_of_both[1],
        contract=contract,
        budget=(budget or Budget()) if contract is Contract.APPROXIMATE else None,
        samples=plain.samples,
        feeds=feeds.to_json() if isinstance(feeds, FeedSource) else {},
        outputs=tuple(plain.metrics.values()),
        deployment=tuple(optimized.metrics.values()),
        drift=tuple(drift.metrics.values()),
        verdict=verdict,
        configs=configs,
        seconds=time.perf_counter() - started,
        regions=regions,
    )


def _of_numbers(
    feeds: FeedSource | Sequence[Feed], numbers: Collection[int], inputs: Sequence[TensorSpec]
) -> list[Feed]:
    """The feeds of these numbers first, complete, and then the first ones."""
    found: list[Feed] = []
    others: list[Feed] = []
    for number, (feed, labels) in enumerate(labelled(feeds)):
        if number in numbers:
            found.append(complete_feed(feed, labels, inputs))
        elif len(others) < _REGION_FEEDS:
            others.append(complete_feed(feed, labels, inputs))
        if len(found) == len(numbers) and len(found) + len(others) >= _REGION_FEEDS:
            break
    return [*found, *others][:_REGION_FEEDS]


def open_pair(
    reference: ModelLike, candidate: ModelLike, contract: Contract, config: SessionConfig
) -> tuple[LogitsSession, LogitsSession]:
    """Sessions of both models, returning the values before softmaxes where both can and it counts.

    Raises:
        ExecutionError: One of the models does not load.
    """
    common: frozenset[str] = frozenset()
    if contract is Contract.REASSOCIATED:
        found = [softmax_inputs(load_ir(model)) for model in (reference, candidate)]
        common = frozenset(found[0]) & frozenset(found[1])
    old = LogitsSession.open(reference, config, common)
    with naming("candidate"):
        return old, LogitsSession.open(candidate, config, frozenset(old.names))


def comparable(reference: ModelLike, candidate: ModelLike) -> ModelLike:
    """``candidate``, with float32 inputs and outputs again where a pass has changed their type."""
    model = load_ir(candidate)
    if not read_io_types(model):
        return candidate
    return with_float_io(model, float_edges(load_ir(reference)))


def _is_stripped(reference: ModelLike, candidate: ModelLike) -> bool:
    """Whether losses or an optimizer were taken out: then what is left is what counts."""
    before, after = (load_ir(model).metadata_props for model in (reference, candidate))
    return any(key in before and key not in after for key in (LOSS_KEY, TRAINING_KEY))


def _before_additions(
    model: ir.Model, candidate: ir.Model, feeds: FeedSource | Sequence[Feed]
) -> tuple[ir.Model, FeedSource | Sequence[Feed]]:
    """A model with the outputs of ``candidate`` alone, and feeds without what it does not read."""
    own = {value.name or "" for value in model.graph.outputs}
    left = [value.name or "" for value in candidate.graph.outputs if value.name in own]
    bare = reduced(model, left, {value.name or "" for value in candidate.graph.inputs})
    gone = {spec.name for spec in input_specs(model)} - {spec.name for spec in input_specs(bare)}
    if isinstance(feeds, FeedSource):
        return bare, feeds.without(gone)
    return bare, [{name: feed[name] for name in feed if name not in gone} for feed in feeds]


def declared_differences(
    old: LogitsSession, new: LogitsSession, *, additive: bool
) -> tuple[str, ...]:
    """How the declared inputs and outputs differ."""
    inputs = signature_differences(
        old.session.inputs, new.session.inputs, what="input", additive=additive
    )
    outputs = signature_differences(old.outputs, new.outputs, what="output", additive=additive)
    return inputs + outputs


def add_outputs(
    comparer: Comparer,
    reference: tuple[Mapping[str, Any], Mapping[str, Any]],
    candidate: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    """Compare one run of two ``LogitsSession``; a value before a softmax only if both have it."""
    (old, old_before), (new, new_before) = reference, candidate
    shared = [name for name in old_before if name in new_before]
    comparer.add(
        {**old, **{before_softmax(name): old_before[name] for name in shared}},
        {**new, **{before_softmax(name): new_before[name] for name in shared}},
    )


def judge(
    comparer: Comparer,
    contract: Contract,
    budget: Budget | None,
    after_softmax: frozenset[str],
    drift: DriftProbe,
    states: frozenset[str] = frozenset(),
) -> Verdict:
    """The verdict with optimizations off; the drift is measured only where it may excuse.

    Raises:
        InconclusiveError: Nothing was compared.
    """
    gate = gate_for(contract, budget, after_softmax, states)
    verdict = comparer.judge(gate)
    if verdict.passed or comparer.structure or contract is not Contract.INTEGER:
        return verdict
    return comparer.judge(gate, drift.measure())


def _ask_oracle(
    reference: ModelLike,
    softmaxes: Mapping[str, str],
    feeds: Iterable[tuple[Feed, Feed]],
    sessions: tuple[LogitsSession, LogitsSession, Session],
) -> Verdict | None:
    """What the float64 oracle says of the candidate, as it is and as deployed."""
    old, new, deployed = sessions

    def chosen(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in softmaxes}

    def samples() -> Iterator[OracleSample]:
        for feed, labels in feeds:
            full = complete_feed(feed, labels, new.session.inputs)
            (mine, before), (theirs, after) = old.run(feed), new.run(full)
            plain = theirs, chosen(after)
            yield feed, (mine, chosen(before)), (plain, (deployed.run(full), {}))

    return nearer_to_truth(load_ir(reference), softmaxes, samples())


@contextmanager
def naming(who: str) -> Generator[None]:
    """Say in an ExecutionError which model it was."""
    try:
        yield
    except ExecutionError as error:
        raise ExecutionError(f"{who}: {error}") from error


def _judge_deployed(
    comparer: Comparer,
    contract: Contract,
    gate: Gate,
    drift: DriftProbe,
    config: SessionConfig,
) -> Verdict:
    verdict = comparer.judge(gate)
    if not verdict.passed and not comparer.structure and contract is not Contract.APPROXIMATE:
        verdict = comparer.judge(gate, drift.measure())
    reasons = tuple(f"in configuration '{config.name}': {each}" for each in verdict.reasons)
    return Verdict(verdict.passed, reasons, verdict.inconclusive)
