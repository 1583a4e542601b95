"""The public API: a model in any form goes in, unmodified; a model with evidence comes out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxfold.adversary import DEFAULT_STEPS, attack
from onnxfold.compiling import compile
from onnxfold.exporting import export, open_model
from onnxfold.finetuning import finetune
from onnxfold.folding import fold
from onnxfold.loss_graphs import inject_loss
from onnxfold.loss_verdicts import NO_LIMITS, judged_by_loss, loss_request
from onnxfold.outcome import (
    COMPARISON_FEEDS,
    Model,
    Outcome,
    Work,
    compared,
    display_name,
)
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.census import has_codes
from onnxfold.passes.errors import InconclusiveError, NotEquivalentError, UsageError
from onnxfold.passes.fold.costs import CostTable
from onnxfold.passes.island_reasons import is_folded
from onnxfold.passes.loss.plan import LABELS
from onnxfold.passes.pipeline import Instrument
from onnxfold.passes.presets import OPTIMIZE
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.compiler.options import Target
from onnxfold.runtime.compiler.verified import (
    run_tolerant,
    run_verified,
)
from onnxfold.runtime.explain import Explanation, explain_model
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.tune import STEPS, measure_costs
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import Comparison, compare_models
from onnxfold.static_quantization import quantize_static

__all__ = [
    "Budget",
    "Contract",
    "Model",
    "Outcome",
    "compile",
    "explain",
    "export",
    "finetune",
    "fold",
    "inject_loss",
    "optimize",
    "quantize_static",
    "require_conclusive",
    "run_passes",
    "tune",
    "verify",
]


def optimize(model: Model, *, data: object = None, progress: Progress | None = None) -> Outcome:
    """Simplify and fuse a float model. A pass that breaks its contract on it is left out.

    Args:
        model: The model.
        data: What to verify on (see ``runtime.feeds.open_feeds``); generated if None.
        progress: Told how far it is.

    Raises:
        NotEquivalentError: The result as a whole is not within the contract.
        InvalidModelError: The model is missing, broken or hostile.
    """
    bar = progress or Silent()
    original = open_model(model, progress)
    feeds = feeds_for(original, data)
    run, kept = run_tolerant(original, parse_passes(OPTIMIZE), feeds, bar)
    try:
        return compared(Work("optimize", model, original, run, kept), feeds, bar)
    except NotEquivalentError:
        # The few feeds of the gates did not show which pass it was: all that are compared do.
        known = {each.name for each in kept}
        left_out = tuple(each for each in run.remarks if each.pass_name not in known)
        run, kept = run_tolerant(original, kept, feeds, bar, gate_feeds=COMPARISON_FEEDS)
        run = replace(run, remarks=(*run.remarks, *left_out))
        return compared(Work("optimize", model, original, run, kept), feeds, bar)


def tune(*, progress: Progress | None = None) -> CostTable:
    """Measure what integer and float kernels cost on this machine, for ``fold`` and ``compile``.

    Args:
        progress: Told how far it is.

    Raises:
        ExecutionError: ONNX Runtime fails.
    """
    bar = progress or Silent()
    bar.stage("measuring kernels", STEPS)
    return measure_costs(bar.advance)


def run_passes(
    model: Model,
    passes: str | Sequence[Pass],
    *,
    data: object = None,
    gates: bool = True,
    instruments: Sequence[Instrument] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Run a pipeline of passes, each checked against its contract.

    Args:
        model: The model.
        passes: A textual pipeline, or passes.
        data: What to verify on; generated if None.
        gates: Whether to check numbers; the structure is always checked.
        instruments: Watch as well.
        progress: Told how far it is.

    Raises:
        UsageError: An unknown pass or option, or unusable data.
        NotEquivalentError: A pass broke its contract.
        PassError: A pass failed.
    """
    pipeline = parse_passes(passes) if isinstance(passes, str) else tuple(passes)
    original = open_model(model, progress)
    feeds = feeds_for(original, data) if gates else None
    bar = progress or Silent()
    run = run_verified(original, pipeline, feeds, bar, instruments=instruments)
    return compared(Work("opt", model, original, run, pipeline), feeds, bar)


def verify(
    reference: Model,
    candidate: Model,
    *,
    data: object = None,
    contract: Contract | str | None = None,
    budget: Budget | str | float | None = None,
    adversarial: int = 0,
    keep: str | os.PathLike[str] | None = None,
    loss: str | Sequence[str] = (),
    on: str | Sequence[str] = (),
    labels: str = LABELS,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models on data.

    Args:
        reference: The original.
        candidate: The rewritten model.
        data: What to feed; generated if None.
        contract: What the candidate promises, or its name; by default APPROXIMATE where a budget
            is given, INTEGER where the candidate is what ``fold`` made of a quantized reference,
            else REASSOCIATED.
        budget: What may be lost.
        adversarial: Steps of a search for the input on which the models differ most; none if 0.
            The contract has to hold there too, unless it is APPROXIMATE, which is about averages.
        keep: A folder to write that input into, as data for later comparisons.
        loss: Losses to compare the models by, as for ``inject_loss``. They decide in place of the
            contract, unless one is named: the candidate may not be proven worse, or with a budget
            ``loss=0.01`` has to be proven no more than that worse, in the loss's own units.
        on: What the losses are about, as for ``inject_loss``.
        labels: Name of the array in the data that holds the right answers.
        progress: Told how far it is.

    Returns:
        The comparison; its verdict says whether the contract holds.

    Raises:
        UsageError: There is no such contract, it leaves nothing to a budget, or the data do not
            fit.
        InvalidModelError: A model is missing, broken or hostile.
    """
    promise = _contract(contract)
    if budget is not None and promise not in (None, Contract.APPROXIMATE):
        raise UsageError(
            f"a budget is for contract approximate: {promise.value} leaves nothing to lose"
        )
    original, rewritten = load_model(reference), load_model(candidate)
    feeds = feeds_for(original, data)
    by_loss = loss_request(loss, on, labels)
    limits = Budget.of(budget)
    if limits.loss is not None and by_loss is None:
        raise UsageError("a budget of loss needs to know which: name it with loss")
    default = _default_contract(original, rewritten) if budget is None else Contract.APPROXIMATE
    if by_loss is not None and budget is None:
        default, limits = Contract.APPROXIMATE, limits if promise else NO_LIMITS
    (progress or Silent()).stage("comparing")
    found = compare_models(original, rewritten, feeds, promise or default, limits)
    if by_loss is not None:
        found = judged_by_loss(found, original, rewritten, feeds, by_loss, limits.loss)
    if adversarial or keep is not None:
        attacked = attack(
            *(original, rewritten, feeds, found.contract),
            steps=adversarial or DEFAULT_STEPS,
            keep=keep,
            progress=progress,
        )
        verdict = found.verdict & attacked.verdict
        found = replace(found, verdict=verdict, worst_input=attacked.to_json())
    return replace(
        found,
        reference=display_name(reference, found.reference),
        candidate=display_name(candidate, found.candidate),
    )


def explain(
    model: Model, *, target: Target = "ort", data: object = None, progress: Progress | None = None
) -> Explanation:
    """What is in a model, what a fold of it leaves in float and why, what it costs.

    Args:
        model: The model.
        target: What to fold for.
        data: What to run it on for the costs; generated if None.
        progress: Told how far it is.

    Raises:
        InvalidModelError: The model is missing, broken or hostile.
        ExecutionError: It does not run.
    """
    loaded = open_model(model, progress)
    (progress or Silent()).stage("folding and timing")
    return explain_model(loaded, feeds_for(loaded, data), target)


def require_conclusive(comparison: Comparison) -> None:
    """Raise where the comparison did not pass.

    Raises:
        NotEquivalentError: The models differ by more than the contract allows.
        InconclusiveError: The samples do not decide.
    """
    verdict = comparison.verdict
    if verdict.passed:
        return
    kind = InconclusiveError if verdict.inconclusive else NotEquivalentError
    first, *others = verdict.reasons
    raise kind(f"{first}; and {len(others)} more" if others else first)


def _default_contract(original: ir.Model, rewritten: ir.Model) -> Contract:
    """INTEGER for the fold of a quantized model, which may round each code to the next."""
    is_fold = any(map(is_folded, all_nodes(rewritten))) and not any(
        map(is_folded, all_nodes(original))
    )
    return Contract.INTEGER if is_fold and has_codes(original) else Contract.REASSOCIATED


def _contract(contract: Contract | str | None) -> Contract | None:
    if contract is None or isinstance(contract, Contract):
        return contract
    names = [each.value for each in Contract]
    if contract not in names:
        raise UsageError(f"no contract '{contract}'; there are {', '.join(names)}")
    return Contract(contract)
