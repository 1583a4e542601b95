"""``onnxfold.finetune``: a fake-quantized model in, the same graph with better constants out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import onnx_ir as ir

from onnxfold.exporting import open_model
from onnxfold.loss_verdicts import NO_LIMITS
from onnxfold.outcome import COMPARISON_FEEDS, Model, Outcome, source_facts
from onnxfold.passes.base import Contract
from onnxfold.passes.errors import NotEquivalentError, UsageError
from onnxfold.passes.loss.inject_loss import InjectLoss
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE
from onnxfold.passes.quantize.set_constants import SetConstants
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.counterparts import paired_layers, typed
from onnxfold.runtime.compiler.choice import Log, Quality
from onnxfold.runtime.compiler.verified import model_facts, run_verified
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.finetune.finetune import FinetuneOptions, Tuned, finetune_constants
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.report.report import Report
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import Comparison, compare_models


def finetune(
    model: Model,
    *,
    reference: Model | None = None,
    loss: str | Sequence[str] = (),
    data: object = None,
    budget: Budget | str | float | None = None,
    steps: int = FinetuneOptions.steps,
    rate: float = FinetuneOptions.rate,
    activations: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Tune the codes, scales and biases of a fake-quantized model by gradient descent.

    The gradient flows straight through the rounding. The graph stays as it is, and what comes out
    is never worse than what came in, by feeds that were not learned from.

    Args:
        model: A model with QuantizeLinear/DequantizeLinear pairs.
        reference: The float model that its outputs are to stay near to; needs no labels.
        loss: What is to fall instead, as for ``inject_loss``; the data holds what it needs.
        data: What to learn from; half of it compares the result with the reference.
        budget: What may be lost against the reference; without it the loss is only reported.
        steps: Steps at most; large models get fewer.
        rate: How far a step moves a code at first, in codes.
        activations: Whether scales of activations move too.
        seed: Decides the order of samples.
        progress: Told how far it is.

    Raises:
        UsageError: There is neither a reference nor a loss, no data, nothing to tune, or an
            operator has no gradient.
        NotEquivalentError: The result misses the budget.
        InvalidModelError: A model is missing, broken or hostile.
    """
    bar = progress or Silent()
    original = open_model(model, progress)
    wanted = None if reference is None else _matching(load_model(reference), original)
    text = loss if isinstance(loss, str) else ",".join(loss)
    if wanted is None and not text:
        raise UsageError("fine-tuning needs the float model to stay near to, or a loss: say which")
    if data is None:
        raise UsageError("fine-tuning needs data: made-up inputs would spoil the model")
    feeds = _feeds(original, text, data)
    halved = feeds.count is None or feeds.count > 1
    learning = feeds.part(0, 2) if halved else feeds
    started = time.perf_counter()
    options = FinetuneOptions(
        steps=steps, rate=rate, activations=activations, rounds=True, seed=seed
    )
    tuned = finetune_constants(
        original, learning, original=wanted, loss=text, options=options, progress=bar
    )
    seconds = time.perf_counter() - started
    if not math.isfinite(tuned.before):
        raise UsageError(
            f"what is to fall is {tuned.before} as the model came: look at labels and data"
        )
    run = run_verified(original, (SetConstants(tuned.constants),), None, bar)
    comparison = None
    if wanted is not None:
        judging = feeds.part(1, 2) if halved else feeds
        comparison = _compared(wanted, run.model, judging, budget, bar)
    report = Report(
        command="finetune",
        passed=True,
        reasons=_reasons(tuned, text),
        source=source_facts(model, original),
        result=model_facts(run.model),
        data=feeds.to_json(),
        passes=run.rows,
        equivalence=comparison.to_json() if comparison else {},
        decisions=_decisions(tuned, text, seconds),
        remarks=run.remarks,
    )
    return Outcome(run.model, report)


def _matching(reference: ir.Model, quantized: ir.Model) -> ir.Model:
    """The float model in the form that was quantized: as it came, or as ``compile`` fuses it.

    Raises:
        UsageError: It takes other inputs, or has none of the quantized model's layers.
    """
    inputs = [{value.name for value in model.graph.inputs} for model in (reference, quantized)]
    other = sorted(str(name) for name in inputs[0] - inputs[1])
    if other:
        raise UsageError(f"the reference takes an input '{other[0]}', the quantized model does not")
    with suppress(UsageError):
        paired_layers(typed(reference), quantized)
        return reference
    fused = Pipeline(parse_passes(OPTIMIZE)).run(reference.clone()).model
    paired_layers(fused, quantized)
    return fused


def _feeds(model: ir.Model, loss: str, data: object) -> FeedSource:
    """What the model is fed, labels too."""
    if not loss:
        return feeds_for(model, data)
    return feeds_for(InjectLoss(loss).run(model.clone()).model, data)


def _compared(
    reference: ir.Model,
    tuned: ir.Model,
    feeds: FeedSource,
    budget: Budget | str | float | None,
    progress: Progress,
) -> Comparison:
    progress.stage("comparing with the reference")
    limits = NO_LIMITS if budget is None else Budget.of(budget)
    names = {value.name for value in reference.graph.inputs}
    extra = {spec.name for spec in feeds.inputs} - names
    few = (feeds.without(extra) if extra else feeds).first(COMPARISON_FEEDS)
    comparison = compare_models(reference, tuned, few, Contract.APPROXIMATE, limits)
    verdict = comparison.verdict
    if not verdict.passed and not verdict.inconclusive:
        raise NotEquivalentError("; ".join(verdict.reasons))
    return comparison


def _decisions(tuned: Tuned, loss: str, seconds: float) -> tuple[dict[str, Any], ...]:
    log = Log()
    log.add("as it came", _quality(tuned.before, loss), None, "measured")
    outcome = "kept" if tuned.constants else "no gain"
    quality = _quality(tuned.after, loss)
    gain = tuned.gain_db if not loss else None
    log.add("fine-tuned", quality, None, outcome, gain_db=gain, seconds=seconds)
    return log.rows()


def _quality(value: float, loss: str) -> Quality:
    if loss:
        return Quality(True, -value, f"loss {value:.6g}")
    decibels = -10 * math.log10(value) if value > 0 else math.inf
    return Quality(True, decibels, f"SQNR {decibels:.1f} dB")


def _reasons(tuned: Tuned, loss: str) -> tuple[str, ...]:
    what = f"loss {loss}" if loss else "relative squared error"
    return (
        f"{what} on feeds that were not learned from: {tuned.before:.4g} before, "
        f"{tuned.after:.4g} after {tuned.steps} steps",
    )
