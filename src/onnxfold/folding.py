"""``fold``: a quantized model becomes integer arithmetic, as measured or as a plan says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from onnxfold.exporting import open_source
from onnxfold.outcome import Model, Outcome, Work, compared
from onnxfold.passes.census import has_codes, integer_weights
from onnxfold.passes.errors import UsageError
from onnxfold.passes.float_ops import float_ops_between
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.fold.types import is_dequantize, is_quantize
from onnxfold.passes.presets import folding
from onnxfold.passes.provenance import node_name
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.walk import all_nodes, label
from onnxfold.runtime.compiler.clock import make_clock
from onnxfold.runtime.compiler.fold_choice import FoldChoice, FoldSubject, choose_fold
from onnxfold.runtime.compiler.options import Target
from onnxfold.runtime.compiler.plan import Plan
from onnxfold.runtime.compiler.verified import VerifiedRun, model_facts, run_verified
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.verify.budget import Budget


def fold(
    model: Model,
    *,
    target: Target = "ort",
    costs: str | os.PathLike[str] | None = None,
    measure: bool = False,
    relax: bool = False,
    reduce_range: bool = False,
    float_biases: bool = False,
    budget: Budget | str | float | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    reference: Model | None = None,
    data: object = None,
    progress: Progress | None = None,
) -> Outcome:
    """Fold an already fake-quantized model to integer arithmetic.

    Args:
        model: A model with QuantizeLinear/DequantizeLinear nodes.
        target: What the integer graph is made of.
        costs: A file that ``tune`` wrote, by which kernels are chosen (``ort`` only); by default
            a table that is built in.
        measure: Time the candidates against each other and against the model as it came, and
            keep the fastest (``ort`` only).
        relax: Activations need not be rounded where that is faster; measures (``ort`` only).
        reduce_range: Give weights 7 bits where x86 machines without VNNI would saturate.
        float_biases: Write biases as float numbers, as TensorRT wants them (``qdq`` only).
        budget: What may be lost by that: a rate of changed top-1 answers, or a ``Budget``.
        plan: Replay these choices, measuring nothing.
        reference: The float model it was quantized from, to be timed as well where the candidates
            are: its inputs in the same order.
        data: What to verify on; generated if None.
        progress: Told how far it is.

    Raises:
        UsageError: There is nothing to fold: no Q/DQ and no integer operator. Or the options do
            not go together. Or the target is ``integer``, and something has no integer form.
        NotEquivalentError: The folded model is not within its contract.
        InvalidModelError: The model is missing, broken or hostile.
    """
    if target != "ort" and (measure or relax or costs is not None):
        raise UsageError(f"costs, measuring and relaxing are for target ort, not {target}")
    if plan is not None and (measure or relax or costs is not None):
        raise UsageError("a plan holds its choices: leave out costs, measuring and relaxing")
    if reduce_range and (measure or relax or plan is not None):
        raise UsageError("reduced weights do not go with measuring, relaxing or a plan")
    if float_biases and (target != "qdq" or plan is not None):
        raise UsageError("float biases are for target qdq, and not for a plan, which holds them")
    if reference is not None and not (measure or relax):
        raise UsageError("a reference is timed against the candidates: measure or relax as well")
    opened = open_source(model, progress)
    original = opened.model
    if not has_codes(original):
        raise UsageError(_nothing_to_fold(original))
    feeds = feeds_for(original, data)
    bar = progress or Silent()
    limits = Budget.of(budget)
    table = "" if costs is None else os.fspath(costs)
    text = folding(target, costs=table, reduce_range=reduce_range, float_biases=float_biases)
    chosen = FoldChoice("", parse_passes(text))
    if plan is not None:
        loaded = plan if isinstance(plan, Plan) else Plan.load(Path(plan))
        loaded.check_model(model_facts(original).sha256)
        _check_target(loaded, target)
        chosen = FoldChoice("", loaded.passes)
    elif measure or relax:
        clock = make_clock(feeds, bar)
        compared_with = None if reference is None else open_source(reference, progress).model
        chosen = choose_fold(
            FoldSubject(original, feeds, clock, table, relax, limits, compared_with)
        )
    run = run_verified(original, chosen.passes, feeds, bar, budget=limits)
    if target == "integer":
        _require_integers(run)
    done = compared(Work("fold", model, original, run, chosen.passes, limits), feeds, bar)
    rows = (*opened.rows, *done.report.passes)
    report = replace(done.report, passes=rows, decisions=chosen.decisions)
    written = Plan(model_facts(original).sha256, chosen.passes, chosen.decisions)
    return replace(done, report=report, plan=written)


def _check_target(plan: Plan, target: Target) -> None:
    """Refuse to replay a plan for a target that is not the one asked for."""
    planned = {each.target for each in plan.passes if isinstance(each, FoldQdq)}
    # "ort" is also what is asked for where nothing is: the plan decides then.
    if target != "ort" and planned and target not in planned:
        raise UsageError(
            f"the plan is for target {', '.join(sorted(planned))}, not {target}; leave out --plan "
            "or --target"
        )


def _require_integers(run: VerifiedRun) -> None:
    """Refuse a result with float operators between codes: its processor may have no float unit."""
    left = float_ops_between(run.model, strict=True)
    dynamic = [node for node in all_nodes(run.model) if node.op_type == "DynamicQuantizeLinear"]
    if dynamic:
        raise UsageError(
            f"target integer cannot compute {label(dynamic[0])}: it finds its scale at run time, "
            "in float; fold with --target standard or ort"
        )
    if not left:
        return
    reasons = {remark.node: remark.reason for remark in run.remarks}
    computing = [node for node in left if not (is_quantize(node) or is_dequantize(node))]
    first = (computing or left)[0]
    reason = reasons.get(node_name(first), "it has no integer form here")
    others = f" and {len(left) - 1} more float operators" if len(left) > 1 else ""
    raise UsageError(
        f"target integer cannot compute {label(first)}{others}: {reason}; fold with --target "
        "standard or ort, which leave it in float (onnxfold explain lists all)"
    )


def _nothing_to_fold(model: ir.Model) -> str:
    """Why a fold would do nothing, and what would do something."""
    names = list(integer_weights(model))
    if names:
        return (
            f"nothing to fold: only weights are quantized ({len(names)} of them behind Cast and "
            f"Mul, the first is '{names[0]}'), which is computed in float; `onnxfold compile` "
            "quantizes the activations as well"
        )
    return (
        "nothing to fold: the model holds no QuantizeLinear/DequantizeLinear and no integer "
        "operator; `onnxfold compile` quantizes it"
    )
