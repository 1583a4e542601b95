"""compile: a float model in, a quantized model with evidence out, never slower unless asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import NotEquivalentError, UsageError
from onnxfold.passes.op_kinds import op_key
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import BEFORE_QUANTIZING, FINISH
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.insert_qdq import quantized_node
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.remark import Remark
from onnxfold.passes.walk import all_nodes, label
from onnxfold.runtime.compiler.builder import Builder
from onnxfold.runtime.compiler.choice import (
    FASTER,
    FLOAT,
    ORIGINAL,
    SENSITIVE,
    TRADED,
    WIDENED,
    Choice,
    Latency,
    Selection,
    Subject,
)
from onnxfold.runtime.compiler.clock import make_clock, make_one_thread_clock
from onnxfold.runtime.compiler.damage import Damage
from onnxfold.runtime.compiler.defects import OF_THE_USER, not_built, not_proven
from onnxfold.runtime.compiler.families import family_of
from onnxfold.runtime.compiler.layers import linear_layers
from onnxfold.runtime.compiler.loss_metric import LossMetric
from onnxfold.runtime.compiler.options import ASKED_FOR, CompileOptions
from onnxfold.runtime.compiler.plan import Plan
from onnxfold.runtime.compiler.quality import QualityJudge
from onnxfold.runtime.compiler.repeatable import check_repeatable
from onnxfold.runtime.compiler.search import search
from onnxfold.runtime.compiler.suited import suited_budget
from onnxfold.runtime.compiler.task import TaskResult, task_budget, within_budget
from onnxfold.runtime.compiler.verified import VerifiedRun, model_facts, run_tolerant, run_verified
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.report.report import distinct_remarks
from onnxfold.runtime.session import REFERENCE
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import Comparison, compare_models

_CALIBRATION_FEEDS = 256
_NO_CANDIDATE = "no quantized candidate was within the budget and faster (measured)"
_NOT_PROVEN = "what was chosen for it misses the budget where it is proven (measured)"
_ADVICE = {
    FASTER: "--keep-slower quantizes it all the same",
    TRADED: "--preset fast quantizes it all the same",
    SENSITIVE: "a wider --budget lets it be quantized",
    WIDENED: "a wider --budget lets it take 8",
    ASKED_FOR: "leave out --skip",
    _NO_CANDIDATE: "--keep-slower, or a wider --budget",
    _NOT_PROVEN: "a wider --budget",
}
_ALLOWANCE = 0.03
"""Of the time, that is given for accuracy beyond the budget: small layers are often noisy."""
_JUDGED_FEEDS = 512
_QUICK_FEEDS, _FEWEST_FEEDS = 8, 3
_QUICK_NUMBERS = 2**17
"""Of inputs, for ranking layers: large ones have many places in one feed."""


@dataclass(frozen=True)
class Compilation:
    """A compiled model with its evidence.

    Attributes:
        run: The model and its passes.
        comparison: End to end, against the model that came in.
        task: Right answers, where the data has labels.
        latency: Interleaved medians; empty where nothing was measured (a replayed plan).
        plan: What was chosen.
        held_out: Whether what judged the model had no part in calibrating it.
    """

    run: VerifiedRun
    comparison: Comparison
    task: TaskResult | None
    latency: Mapping[str, Latency]
    plan: Plan
    held_out: bool


@dataclass(frozen=True)
class Data:
    """The user's data, in the parts that must not meet.

    Attributes:
        calibration: What ranges are taken from.
        evaluation: What quality is judged on.
        held_out: Whether the two are disjoint.
    """

    calibration: FeedSource
    evaluation: FeedSource
    held_out: bool

    @classmethod
    def split(cls, feeds: FeedSource) -> Data:
        """Every other feed calibrates, the rest evaluates; a single feed does both."""
        if sum(1 for _ in islice(feeds, 2)) < 2:
            return cls(feeds, feeds, held_out=False)
        calibration = feeds.part(0, 2).first(_CALIBRATION_FEEDS)
        return cls(calibration, feeds.part(1, 2), held_out=True)


def compile_model(
    model: ir.Model, feeds: FeedSource, options: CompileOptions, progress: Progress
) -> Compilation:
    """Optimize, calibrate, choose what to quantize, fold, and prove it.

    Args:
        model: Not modified.
        feeds: The user's data.
        options: What the user asked for.
        progress: Told of each stage.

    Raises:
        InvalidModelError: The model answers differently each time.
        NotEquivalentError: The result breaks a contract or the budget.
        PassError: A pass failed.
        UsageError: The model is quantized already, there is no such calibration method, or the
            calibration cache belongs to another model or other data.
    """
    _refuse_quantized(model)
    options = _suited(options, model)
    choices = options.starting_choices(family_of(model))
    data = Data.split(feeds)
    check_repeatable(model, next(iter(data.evaluation)))
    if isinstance(options.metric, LossMetric):
        options.metric.check_labels(model, feeds)
    float_run, float_passes = run_tolerant(
        model, parse_passes(BEFORE_QUANTIZING), data.evaluation, progress
    )
    optimized = float_run.model
    builder = Builder(optimized, data.calibration, options, progress, data.evaluation)
    finish = parse_passes(FINISH) if options.target == "ort" else ()
    lean = Pipeline(finish).run(optimized.clone()).model
    selection = _choose(model, lean, data, options, choices, builder, progress)
    if builder.failures and options.takes_first:
        raise next(iter(builder.failures.values()))
    _require_speed(selection, options.budget)
    if selection.choice is None:
        passes = () if selection.model is model else (*float_passes, *finish)
    else:
        passes = (*float_passes, *builder.passes(selection.choice))
    if selection.choice is None:
        reasons = builder.in_float(choices[0])
        in_float = {name: reasons.get(name, _NO_CANDIDATE) for name in linear_layers(optimized)}
    else:
        wide = dict.fromkeys(selection.choice.in_16_bits, WIDENED)
        in_float = {**dict(selection.choice.in_float), **wide}
    plan = Plan(model_facts(model).sha256, passes, selection.decisions, in_float)
    plans = [plan, plan.instead(ORIGINAL, (), in_float)]
    if selection.choice is not None:
        unproven = dict.fromkeys(linear_layers(optimized), _NOT_PROVEN)
        floats = [plan.instead(ORIGINAL, (), unproven)]
        if selection.latency[FLOAT].relative <= selection.latency[ORIGINAL].relative:
            floats.insert(0, plan.instead(FLOAT, (*float_passes, *finish), unproven))
        # What was asked for, and how fast it has to be, leaves nothing to fall back on.
        asked = options.takes_first or options.budget.faster is not None
        plans = [plan] if asked else [plan, *floats]
    proven = _Proven(float_run, float_passes)
    plan, proof, remarks = _first_proven(model, plans, data, options, progress, proven)
    run, comparison, task = proof
    left_out = (*float_run.remarks, *remarks, *map(not_built, builder.failures.items()))
    left_out = tuple(each for each in left_out if each not in run.remarks)
    remarks = (*_explained(run.remarks, plan.in_float, run.model, optimized), *left_out)
    run = replace(run, remarks=remarks)
    return Compilation(run, comparison, task, selection.latency, plan, data.held_out)


def replay(
    model: ir.Model,
    plan: Plan,
    feeds: FeedSource,
    options: CompileOptions,
    progress: Progress,
) -> Compilation:
    """Run a plan's passes, measuring nothing, and prove the result.

    Raises:
        UsageError: The plan was made for another model.
        NotEquivalentError: The result breaks a contract or the budget.
    """
    plan.check_model(model_facts(model).sha256)
    options = _suited(options, model)
    data = Data.split(feeds)
    run, comparison, task = _prove(model, plan, data, options, progress)
    run = replace(run, remarks=_explained(run.remarks, plan.in_float, run.model))
    return Compilation(run, comparison, task, {}, plan, data.held_out)


def _suited(options: CompileOptions, model: ir.Model) -> CompileOptions:
    """``options`` with the budget that suits the model, where no measure of the user's judges."""
    if options.metric is not None:
        return options
    return replace(options, budget=suited_budget(options.budget, model))


_Proof = tuple[VerifiedRun, Comparison, TaskResult | None]


@dataclass(frozen=True)
class _Proven:
    """What was held to its contracts already, on the same feeds: the way to the float model."""

    run: VerifiedRun
    passes: tuple[Pass, ...]

    def rest_of(self, passes: Sequence[Pass]) -> tuple[Pass, ...] | None:
        """What of ``passes`` is not proven yet; None where they begin otherwise."""
        count = len(self.passes)
        # One row a pass: where one was left out half way, all are run again.
        begins = len(self.run.rows) == count and tuple(passes[:count]) == self.passes
        return tuple(passes[count:]) if begins and count else None


def _first_proven(
    model: ir.Model,
    plans: Sequence[Plan],
    data: Data,
    options: CompileOptions,
    progress: Progress,
    proven: _Proven,
) -> tuple[Plan, _Proof, tuple[Remark, ...]]:
    """The first of ``plans`` that holds where it is proven, its proof, and why others did not.

    What chose a plan saw fewer samples, and only what is deployed: the original is always right.
    A pass for integers that breaks its contract is a defect, which is said; it costs the user the
    integers, not the answer.

    Raises:
        NotEquivalentError: The last one does not hold.
    """
    remarks: tuple[Remark, ...] = ()
    for plan in plans[:-1]:
        try:
            return plan, _prove(model, plan, data, options, progress, proven), remarks
        except OF_THE_USER:
            raise
        except Exception as error:  # noqa: BLE001 (a float model holds)
            remarks += (not_proven(error, plan),)
    return plans[-1], _prove(model, plans[-1], data, options, progress, proven), remarks


def _prove(
    model: ir.Model,
    plan: Plan,
    data: Data,
    options: CompileOptions,
    progress: Progress,
    proven: _Proven | None = None,
) -> _Proof:
    budget = options.budget
    rounding = [each for each in plan.passes if each.contract is Contract.APPROXIMATE]
    quantized = bool(rounding)
    # What one pass breaks the next may mend: then only the whole can be judged.
    lenient = _LENIENT if len(rounding) == 1 else _UNLIMITED
    known = None if proven is None else proven.rest_of(plan.passes)
    start, rest = (
        (model, plan.passes) if proven is None or known is None else (proven.run.model, known)
    )
    run = run_verified(start, rest, data.evaluation, progress, budget=lenient)
    if proven is not None and known is not None:
        remarks = distinct_remarks([*proven.run.remarks, *run.remarks])
        run = replace(run, rows=(*proven.run.rows, *run.rows), remarks=remarks)
    contract = Contract.APPROXIMATE if quantized else Contract.REASSOCIATED
    progress.stage("comparing with the original")
    judge = _judge(model, data.evaluation, options)
    seen, task = judge.compare(run.model)
    limits = task_budget(budget, task)
    states = judge.states if quantized else frozenset[str]()
    comparison = compare_models(model, run.model, data.evaluation, contract, limits, states=states)
    verdict = judge.verdict(seen, task)
    if states and not verdict.passed and not verdict.inconclusive:
        raise NotEquivalentError("; ".join(verdict.reasons))
    if states:
        run = replace(run, remarks=(*run.remarks, _of_states(states, judge.drift(seen))))
    if not comparison.verdict.passed and not comparison.verdict.inconclusive:
        raise NotEquivalentError("; ".join(comparison.verdict.reasons))
    if task is not None and not within_budget(task, budget):
        share = None if budget.max_flip_rate is None else f"{budget.max_flip_rate:.2%} of it"
        raise NotEquivalentError(
            f"{task}: more is lost than the budget of {share or f'{budget.loss:g}'}"
        )
    return run, comparison, task


def _of_states(states: Collection[str], drift: str) -> Remark:
    names = ", ".join(f"'{each}'" for each in sorted(states))
    reason = f"{names} are states: judged by the other outputs while they are fed back; {drift}"
    return Remark("compile", "(whole model)", "", reason, "")


def _explained(
    remarks: Sequence[Remark], in_float: Mapping[str, str], *models: ir.Model
) -> tuple[Remark, ...]:
    """The remarks, with the measured reason where it was the compilation that chose float."""
    kinds = {node_name(node): op_key(node) for model in models for node in all_nodes(model)}
    own = [
        Remark("compile", node, kinds.get(node, ""), reason, _ADVICE.get(reason, ""))
        for node, reason in in_float.items()
    ]
    return (*(each for each in remarks if each.node not in in_float), *own)


_LENIENT = Budget(sqnr_db=5.0, cosine=0.8, max_flip_rate=None)
"""For the few feeds of the per-pass gate: it catches a broken pass, the comparison judges."""

_UNLIMITED = Budget(sqnr_db=None, cosine=None, max_flip_rate=None)


def _choose(
    model: ir.Model,
    lean: ir.Model,
    data: Data,
    options: CompileOptions,
    choices: Sequence[Choice],
    builder: Builder,
    progress: Progress,
) -> Selection[ir.Model]:
    judge = _judge(model, data.evaluation.first(_JUDGED_FEEDS), options)
    quick = _quick_judge(model, data.evaluation, options.budget)
    layers = linear_layers(builder.optimized)

    damage = Damage(builder, quick, layers, choices[0], progress)
    subject = Subject(
        build=builder.build,
        judge=judge,
        clock=make_clock(data.evaluation, progress),
        layers=layers,
        damage=damage,
        original=model,
        optimized=lean,
        ladder=options.ladder,
        alike=_have_the_same_nodes,
        is_idle=builder.is_idle,
        mixes=options.preset == "best" or options.budget.faster is not None,
        share=damage.share,
        allowance=0.0 if options.preset == "fast" else _ALLOWANCE,
        widens=options.widens,
        slowest=None if options.budget.faster is None else 1.0 / options.budget.faster,
        confirm=make_one_thread_clock(data.evaluation, progress),
    )
    return search(subject, choices, keep_slower=options.takes_first)


def _have_the_same_nodes(one: ir.Model, other: ir.Model) -> bool:
    return [op_key(node) for node in all_nodes(one)] == [op_key(node) for node in all_nodes(other)]


def _judge(model: ir.Model, feeds: FeedSource, options: CompileOptions) -> QualityJudge:
    return QualityJudge(model, feeds, options.budget, options.metric, options.metric_name)


def _quick_judge(model: ir.Model, feeds: FeedSource, budget: Budget) -> QualityJudge:
    """A judge of noise alone, for each layer of a model: without optimizations, on a few feeds."""
    size = sum(np.asarray(each).size for each in next(iter(feeds)).values())
    count = max(_FEWEST_FEEDS, min(_QUICK_FEEDS, _QUICK_NUMBERS // max(size, 1)))
    return QualityJudge(model, feeds.first(count), budget, config=REFERENCE)


def _require_speed(selection: Selection[ir.Model], budget: Budget) -> None:
    if budget.faster is None:
        return
    gain = 1.0 / selection.latency[selection.name].relative
    if gain < budget.faster:
        raise NotEquivalentError(
            f"the fastest model within the budget is {gain:.2f} times as fast as the original, "
            f"not {budget.faster:g} times ({selection.name}); a wider budget for noise may allow it"
        )


def _refuse_quantized(model: ir.Model) -> None:
    node = quantized_node(model)
    if node is not None:
        raise UsageError(f"the model is quantized already ({label(node)}): use onnxfold fold")
