"""Chooses among the folds of one model: by measured latency, within a budget where one is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.fold_qdq import NO_COSTS
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.serialization import model_bytes
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.compiler.choice import Latency
from onnxfold.runtime.compiler.clock import Clock
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import compare_models

AS_IT_CAME = "as it came"
BY_COSTS = "by the table of costs"
_THROUGHOUT = "integer kernels throughout"
_UNROUNDED = "activations not rounded"
_DYNAMIC = "LSTMs quantized at every step"
_UNROUNDED_DYNAMIC = "activations not rounded, LSTMs quantized at every step"
_UNLIMITED = "activations not rounded, nor cut off"
REFERENCE = "the reference"
"""The float model, which is timed and not chosen: it is no fold."""

_FASTER_BY = 0.97
"""What comes later has to gain 3 %: less is noise, and the first choice is the nearest."""

_JUDGED_FEEDS = 64


@dataclass(frozen=True)
class FoldChoice:
    """How a model is folded.

    Attributes:
        name: What reports call it.
        passes: The pipeline; none where the model stays as it came.
        decisions: Every candidate with its figures and what became of it.
    """

    name: str
    passes: tuple[Pass, ...]
    decisions: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class FoldSubject:
    """What is chosen for.

    Attributes:
        model: The model that came in; not modified.
        feeds: What relaxed candidates are judged on.
        clock: Times candidates.
        costs: A file of costs; empty for the table that is built in.
        relax: Whether activations need not be rounded.
        budget: What that may cost.
        reference: The float model that ``model`` was quantized from, to be timed as well; None to
            time the folds alone.
    """

    model: ir.Model
    feeds: FeedSource
    clock: Clock
    costs: str = ""
    relax: bool = False
    budget: Budget = field(default_factory=Budget)
    reference: ir.Model | None = None


def choose_fold(subject: FoldSubject) -> FoldChoice:
    """The fastest fold for ONNX Runtime, or the model as it came where no fold is faster.

    Args:
        subject: What is chosen for.

    Raises:
        UsageError: The reference does not run on the inputs of the model.
    """
    pipelines = _pipelines(subject)
    models = {AS_IT_CAME: subject.model}
    outcomes = dict.fromkeys(pipelines, "slower than the chosen")
    quality = dict.fromkeys(pipelines, "")
    written: dict[bytes, str] = {}
    for name, passes in pipelines.items():
        folded = Pipeline(passes).run(subject.model.clone()).model
        twin = written.setdefault(model_bytes(folded), name)
        if twin != name:
            outcomes[name] = f"the same as {twin}"
            continue
        if any(each.contract is Contract.APPROXIMATE for each in passes):
            quality[name], passed = _judged(subject, folded)
            if not passed:
                outcomes[name] = "misses the budget"
                continue
        models[name] = folded
    if subject.reference is not None:
        models[REFERENCE] = _as_fed(subject.reference, subject.model)
    latency = subject.clock(models)
    chosen = _fastest([name for name in (*pipelines, AS_IT_CAME) if name in models], latency)
    outcomes[AS_IT_CAME] = "slower than the chosen"
    outcomes[chosen] = "chosen"
    if subject.reference is not None:
        outcomes[REFERENCE] = _against_reference(latency, chosen)
    rows = [
        {
            "candidate": name,
            "quality": quality.get(name, ""),
            "median_ms": latency[name].median_ms if name in latency else None,
            "relative": latency[name].relative if name in latency else None,
            "outcome": outcome,
        }
        for name, outcome in outcomes.items()
    ]
    return FoldChoice(chosen, pipelines.get(chosen, ()), tuple(rows))


def _pipelines(subject: FoldSubject) -> dict[str, tuple[Pass, ...]]:
    texts = {
        BY_COSTS: folding("ort", costs=subject.costs),
        _THROUGHOUT: folding("ort", costs=NO_COSTS),
    }
    if subject.relax:
        texts[_UNROUNDED] = folding("ort", costs=subject.costs, relax="keep")
        texts[_UNLIMITED] = folding("ort", costs=subject.costs, relax="drop")
    if subject.relax and any(node.op_type == "LSTM" for node in all_nodes(subject.model)):
        texts[_DYNAMIC] = folding("ort", costs=subject.costs, dynamic_lstm=True)
        texts[_UNROUNDED_DYNAMIC] = folding(
            "ort", costs=subject.costs, relax="keep", dynamic_lstm=True
        )
    return {name: parse_passes(text) for name, text in texts.items()}


def _as_fed(reference: ir.Model, model: ir.Model) -> ir.Model:
    """A copy of ``reference`` that takes what ``model`` does: names, and types by a Cast.

    Raises:
        UsageError: It has another number of inputs.
    """
    copy = reference.clone()
    graph, wanted = copy.graph, model.graph.inputs
    if len(graph.inputs) != len(wanted):
        raise UsageError(
            f"the reference has {len(graph.inputs)} inputs, and the model {len(wanted)}: "
            "give the float model it was quantized from"
        )
    for index, (value, like) in enumerate(zip(tuple(graph.inputs), wanted, strict=True)):
        if value.dtype == like.dtype or value.dtype is None:
            value.name = like.name
            continue
        cast = ir.node("Cast", [], {"to": int(value.dtype)})
        value.replace_all_uses_with(cast.outputs[0])
        fed = ir.Value(name=like.name, type=like.type, shape=value.shape)
        cast.resize_inputs(1)
        cast.replace_input_with(0, fed)
        graph.inputs[index] = fed
        graph.insert_before(graph[0], cast)
    return copy


def _against_reference(latency: Mapping[str, Latency], chosen: str) -> str:
    """What became of the reference, in words.

    Raises:
        UsageError: It did not run.
    """
    if REFERENCE not in latency:
        raise UsageError(
            "the reference does not run on the inputs of the model: give the float model it was "
            "quantized from"
        )
    ratio = latency[chosen].relative / latency[REFERENCE].relative
    return f"not folded; the chosen takes {ratio:.2f} of its time"


def _judged(subject: FoldSubject, folded: ir.Model) -> tuple[str, bool]:
    """How near a candidate is, in words, and whether that is within the budget."""
    few = subject.feeds.first(_JUDGED_FEEDS)
    found = compare_models(subject.model, folded, few, Contract.APPROXIMATE, subject.budget)
    words = "; ".join(found.verdict.reasons)
    return words or "within the budget", found.verdict.passed


def _fastest(names: list[str], latency: Mapping[str, Latency]) -> str:
    """The first of ``names`` that none after it beats by more than noise."""
    best = names[0]
    for name in names[1:]:
        if latency[name].relative < latency[best].relative * _FASTER_BY:
            best = name
    return best
