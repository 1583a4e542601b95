"""``onnxfold.compile``: a float model in, an integer model with evidence out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxfold.exporting import open_source
from onnxfold.loss_verdicts import loss_request
from onnxfold.outcome import Model, Outcome, fold_target, source_facts
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.plan import LABELS
from onnxfold.passes.presets import Mode
from onnxfold.passes.quantize.overrides import Overrides
from onnxfold.passes.quantize.schemes import Activations, Weights
from onnxfold.runtime.compiler.config import merged, read_config
from onnxfold.runtime.compiler.driver import Compilation, compile_model, replay
from onnxfold.runtime.compiler.families import family_of
from onnxfold.runtime.compiler.loss_metric import LossMetric
from onnxfold.runtime.compiler.options import CompileOptions, Preset, Target
from onnxfold.runtime.compiler.plan import Plan
from onnxfold.runtime.compiler.quality import Metric
from onnxfold.runtime.compiler.verified import model_facts
from onnxfold.runtime.explain import explain_islands
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.report.report import Report
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.verify.budget import Budget


def compile(
    model: Model,
    *,
    data: object = None,
    config: str | os.PathLike[str] | None = None,
    target: Target | None = None,
    mode: Mode | None = None,
    budget: Budget | str | float | None = None,
    metric: Metric | str | None = None,
    loss: str | Sequence[str] = (),
    on: str | Sequence[str] = (),
    labels: str = LABELS,
    preset: Preset | None = None,
    calibration: str | None = None,
    calibration_cache: str | os.PathLike[str] | None = None,
    keep_slower: bool | None = None,
    reduce_range: bool | None = None,
    costs: str | os.PathLike[str] | None = None,
    activations: Activations | None = None,
    weights: Weights | None = None,
    per_channel: bool | None = None,
    symmetric: bool | None = None,
    op_types: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    overrides: Overrides | str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    trust_pickle: bool = False,
    python: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Quantize a float model, fold it to integer arithmetic, keep what is faster, and prove it.

    What is None is as the configuration file says, else as usual (in parentheses).

    Args:
        model: A float model, or what a framework saved or holds, which is exported first; a live
            module of torch is traced with the first sample of the data.
        data: The user's data: half of it calibrates, the other half judges. Required, except
            with a plan.
        config: A TOML file of these options, and of exceptions from them.
        target: What the integer graph is made of (``ort``).
        mode: A mode of TensorFlow Lite: ``dynamic-range``, ``full-integer`` (inputs and outputs
            too), ``16x8`` or ``float16``; or ``int4-weights``. What it makes is taken however fast
            it is (none).
        budget: What may be lost: a rate of changed top-1 answers, or a ``Budget``.
        metric: The user's own measure, a function or ``file.py:function``: it is given pairs of
            outputs and arrays of samples (those beside the inputs too), by name, and returns a
            number, more is better. The budget's rate is the share of it that may be lost.
        loss: Losses to measure by instead, as for ``inject_loss``, of outputs and the labels beside
            the inputs. The budget's rate is the share by which they may become worse; a budget
            ``loss=0.01`` is in their own units.
        on: The outputs that the losses are about, as for ``inject_loss``.
        labels: Name of the array in the data that holds the right answers.
        preset: How much is tried for accuracy: ``fast`` only what the budget needs, ``balanced``
            what takes seconds, ``best`` all there is (``balanced``).
        calibration: How activation ranges are found: the name of a method, with its options in
            braces, or ``search``, the nearest of several (``search``).
        calibration_cache: A file (.json or .npz) that keeps the ranges for the next time.
        keep_slower: Quantize all that can be, even where it makes the model slower (no).
        reduce_range: Give weights 7 bits where x86 machines without VNNI would saturate (no).
        costs: A file that ``tune`` wrote, by which kernels are chosen (target ``ort``).
        activations: Codes of activations (``u8``).
        weights: Codes of weights (``s8``).
        per_channel: One weight scale per output channel, not one per tensor (yes).
        symmetric: Zero points of activations in the middle of the codes (no).
        op_types: Operators that may be quantized (all that can be).
        skip: Names of nodes to leave in float.
        only: Names of the linear nodes to quantize (all).
        overrides: Exceptions, by operator, name or regular expression; as JSON, or a JSON file.
        plan: Replay these choices, measuring nothing.
        trust_pickle: Read a pickle of scikit-learn, which can run any program.
        python: The interpreter that has the framework, as for ``export``.
        progress: Told how far it is.

    Raises:
        UsageError: There is no data, the model is quantized already, an option has no such value,
            or the calibration cache belongs to another model or other data.
        NotEquivalentError: The result breaks a contract or the budget.
    """
    if data is None and plan is None:
        raise UsageError("compile needs data to calibrate on: give --data")
    opened = open_source(model, progress, data=data, trust_pickle=trust_pickle, python=python)
    original = opened.model
    by_loss = loss_request(loss, on, labels)
    if by_loss is not None and metric is not None:
        raise UsageError("compile measures by a metric or by losses, not by both")
    given: dict[str, Any] = {
        "target": target,
        "mode": mode,
        "budget": budget,
        "metric": metric if by_loss is None else LossMetric(original, by_loss),
        "preset": preset,
        "calibration": calibration,
        "calibration_cache": calibration_cache,
        "keep_slower": keep_slower,
        "reduce_range": reduce_range,
        "costs": costs,
        "activations": activations,
        "weights": weights,
        "per_channel": per_channel,
        "symmetric": symmetric,
        "op_types": op_types,
        "skip": skip,
        "only": only,
        "overrides": overrides,
    }
    options = CompileOptions.of(merged(given, {} if config is None else read_config(Path(config))))
    if options.budget.loss is not None and by_loss is None:
        raise UsageError("a budget of loss needs to know which: name it with loss")
    bar = progress or Silent()
    feeds = feeds_for(original, data)
    if plan is not None:
        loaded = plan if isinstance(plan, Plan) else Plan.load(Path(plan))
        done = replay(original, loaded, feeds, options, bar)
    else:
        done = compile_model(original, feeds, options, bar)
    asked = {**options.to_json(), "family": family_of(original)} if plan is None else {}
    report = _report(model, original, done, feeds, asked)
    report = replace(report, passes=(*opened.rows, *report.passes))
    return Outcome(done.run.model, report, done.plan)


def _report(
    model: Model,
    original: ir.Model,
    done: Compilation,
    feeds: FeedSource,
    options: dict[str, Any],
) -> Report:
    latency = {
        name: {"median_ms": each.median_ms, "relative": each.relative}
        for name, each in done.latency.items()
    }
    verdict = done.comparison.verdict
    return Report(
        command="compile",
        passed=verdict.passed,
        reasons=verdict.reasons,
        source=source_facts(model, original),
        result=model_facts(done.run.model),
        options=options,
        data={**feeds.to_json(), "held_out": done.held_out},
        passes=done.run.rows,
        equivalence=done.comparison.to_json(),
        task=done.task.to_json() if done.task else {},
        latency={"models": latency} if latency else {},
        decisions=done.plan.decisions,
        islands=explain_islands(
            done.run.model, done.run.remarks, feeds, fold_target(done.plan.passes)
        ),
        remarks=done.run.remarks,
    )
