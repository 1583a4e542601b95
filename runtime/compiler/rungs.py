"""The rungs of the accuracy ladder: which pass each is, and what it has to know about the data.

A rung belongs to one of three stages: it prepares the float model, it changes how weights are
quantized, or it mends the codes of the quantized model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import OnnxfoldError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.align_concat import AlignConcat
from onnxfold.passes.quantize.correct_bias import CorrectBias
from onnxfold.passes.quantize.equalize import Equalize
from onnxfold.passes.quantize.gptq import Gptq
from onnxfold.passes.quantize.input_moments import InputMoments
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.linear_outputs import LinearOutput
from onnxfold.passes.quantize.output_errors import OutputErrors
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.quantize_weights import QuantizeWeights
from onnxfold.passes.quantize.quick_gelu import QuickGelu
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.round_weights import RoundWeights
from onnxfold.passes.quantize.set_constants import SetConstants, fitting
from onnxfold.passes.quantize.smooth_quant import SmoothQuant
from onnxfold.passes.quantize.tuned_constants import TunedConstants
from onnxfold.passes.quantize.weight_codes import WeightCodes
from onnxfold.passes.quantize.weight_rounding import WeightRounding
from onnxfold.passes.simplify.upgrade_opset import UpgradeOpset
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.channel_maxima import measure_channel_maxima
from onnxfold.runtime.calibrate.gelu_slopes import measure_gelu_slopes
from onnxfold.runtime.calibrate.input_moments import measure_input_moments
from onnxfold.runtime.calibrate.layer_errors import measure_output_errors
from onnxfold.runtime.calibrate.learned_rounding import measure_rounding
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.finetune.finetune import finetune_constants
from onnxfold.runtime.progress import Progress

_FEEDS = 64
"""What the passes learn from: means and second moments need no more."""
_MEANS = 32
"""For mean errors, which are measured behind every other mending."""
_VECTORS = 8192
"""For second moments of some hundred inputs, from all feeds together."""
_NUMBERS = 2**19
"""Of inputs, in all feeds of a rung: large ones show as much of each channel in a few feeds."""
_FEWEST = 8
_BLOCKS_OPSET = 21


@dataclass(frozen=True)
class Lesson:
    """What a rung may learn from.

    Attributes:
        original: The float model, as prepared so far.
        quantized: The same with Q/DQ pairs, where it has them already; else the same.
        feeds: The data.
        progress: Told what is measured.
        rungs: All that are climbed.
        moments: Of the inputs of float models that were measured before; kept for the next.
        means: Of the original's layers, by output; kept for the next.
    """

    original: ir.Model
    quantized: ir.Model
    feeds: FeedSource
    progress: Progress
    rungs: tuple[str, ...] = ()
    moments: MutableMapping[ir.Model, InputMoments] = field(
        default_factory=dict[ir.Model, InputMoments]
    )
    means: MutableMapping[str, Array] = field(default_factory=dict[str, Array])


def _enough(feeds: FeedSource, most: int) -> tuple[FeedSource, int]:
    """At most so many of ``feeds``, fewer where each is large; and how many."""
    size_of_one = next((sum(map(np.size, each.values())) for each in feeds), 1)
    count = max(_FEWEST, min(most, _NUMBERS // max(size_of_one, 1)))
    return feeds.first(count), count


def _smooth_quant(lesson: Lesson) -> Pass:
    feeds, count = _enough(lesson.feeds, _FEEDS)
    lesson.progress.stage("measuring the largest values of channels", count)
    return SmoothQuant(
        measure_channel_maxima(lesson.original, None, feeds, progress=lesson.progress)
    )


def _quick_gelu(lesson: Lesson) -> Pass:
    feeds, count = _enough(lesson.feeds, _MEANS)
    lesson.progress.stage("measuring how near Gelus are to logistic functions", count)
    return QuickGelu(measure_gelu_slopes(lesson.original, feeds, progress=lesson.progress))


def _align_concat(lesson: Lesson) -> Pass:
    if not any(node.op_type == "Concat" for node in lesson.original.graph):
        return AlignConcat(Ranges({}))
    feeds, count = _enough(lesson.feeds, _FEEDS)
    lesson.progress.stage("measuring the ranges of what is joined", count)
    names = tensors_to_observe(lesson.original, PlacementOptions())
    return AlignConcat(calibrate(lesson.original, names, feeds, progress=lesson.progress))


def _hessian_ranges(insert: InsertQdq, lesson: Lesson) -> InsertQdq:
    return replace(insert, weight_ranges="hessian", moments=_moments(lesson))


def _moments(lesson: Lesson) -> InputMoments:
    if lesson.original not in lesson.moments:
        feeds, count = _enough(lesson.feeds, _FEEDS)
        lesson.progress.stage("measuring the moments of inputs", count)
        found = measure_input_moments(
            lesson.original, None, feeds, rows=_VECTORS // count, progress=lesson.progress
        )
        lesson.moments[lesson.original] = found
    return lesson.moments[lesson.original]


def _gptq(lesson: Lesson) -> Pass:
    # Moments of quantized inputs do worse: measured, 2 to 5 dB of the output at 4 bits.
    moments = _moments(lesson)
    gptq = Gptq(moments, centered="correct-bias" in lesson.rungs)
    done = Pipeline((gptq,)).run(lesson.quantized.clone())
    # A plan keeps the codes: they take a fraction of the room that moments take.
    return RoundWeights(_changed_codes(lesson.quantized, done.model))


def round_stored_weights(quantize: QuantizeWeights, lesson: Lesson) -> QuantizeWeights:
    """The pass that stores weights, with codes chosen by what rounding them does to the outputs."""
    moments = _moments(lesson)
    newer = Pipeline((UpgradeOpset(to=_BLOCKS_OPSET),)).run(lesson.original.clone()).model
    if newer.graph.opset_imports.get("", 0) < _BLOCKS_OPSET:
        return quantize
    before = Pipeline((replace(quantize, form="dq"),)).run(newer).model
    after = Pipeline((Gptq(moments),)).run(before.clone()).model
    return replace(quantize, rounding=_changed_codes(before, after))


def _changed_codes(before: ir.Model, after: ir.Model) -> WeightRounding:
    pairs = zip(before.graph, after.graph, strict=True)
    found = ((old, WeightCodes.match(old), WeightCodes.match(new)) for old, new in pairs)
    return WeightRounding(
        {
            node_name(node): new.stored.astype(np.int16)
            for node, old, new in found
            if old is not None and new is not None and not np.array_equal(old.stored, new.stored)
        }
    )


def _has_layers(model: ir.Model) -> bool:
    """Whether anything can be mended: errors are measured in the main graph, not inside bodies."""
    return any(LinearOutput.match(node) is not None for node in model.graph)


def _learned_rounding(lesson: Lesson) -> Pass:
    if not _has_layers(lesson.quantized):
        return RoundWeights(WeightRounding({}))
    lesson.progress.stage("learning the rounding of weights")
    feeds = lesson.feeds.first(_FEEDS)
    return RoundWeights(
        measure_rounding(lesson.original, lesson.quantized, feeds, progress=lesson.progress)
    )


def _correct_bias(lesson: Lesson) -> Pass:
    if not _has_layers(lesson.quantized):
        return CorrectBias(OutputErrors({}))
    lesson.progress.stage("measuring the mean errors of layers")
    feeds, _ = _enough(lesson.feeds, _MEANS)
    return CorrectBias(
        measure_output_errors(lesson.original, lesson.quantized, feeds, means=lesson.means)
    )


def _finetuned(lesson: Lesson) -> Pass:
    feeds = lesson.feeds.first(_FEEDS)
    try:
        tuned = finetune_constants(
            lesson.quantized, feeds, original=lesson.original, progress=lesson.progress
        )
    except OnnxfoldError:
        # Not every operator has a gradient, or kernels for it.
        return SetConstants(TunedConstants({}))
    return SetConstants(tuned.constants)


def applicable(learned: Pass, quantized: ir.Model, skip: Collection[str]) -> Pass:
    """What of a mending pass, learned on a model with fewer layers in float, holds for this one.

    Args:
        learned: The pass.
        quantized: A model with Q/DQ pairs.
        skip: Names of its nodes in float.
    """
    nodes = {node_name(node): node for node in quantized.graph if node_name(node) not in skip}
    if isinstance(learned, RoundWeights):
        found = ((name, WeightCodes.match(node)) for name, node in nodes.items())
        coded = {name for name, codes in found if codes is not None}
        kept = {name: codes for name, codes in learned.rounding.items() if name in coded}
        return RoundWeights(WeightRounding(kept))
    if isinstance(learned, CorrectBias):
        return CorrectBias(
            OutputErrors({name: each for name, each in learned.errors.items() if name in nodes})
        )
    if isinstance(learned, SetConstants):
        return SetConstants(fitting(learned.constants, nodes.values()))
    return learned


PREPARING: Mapping[str, Callable[[Lesson], Pass]] = MappingProxyType(
    {
        "align-concat": _align_concat,
        "equalize": lambda _: Equalize(),
        "smooth-quant": _smooth_quant,
        "quick-gelu": _quick_gelu,
    }
)
"""Rungs that change the float model, in this order; as far as real numbers go not at all, but for
the last, which no ladder has: it saves time."""

INSERTING: Mapping[str, Callable[[InsertQdq, Lesson], InsertQdq]] = MappingProxyType(
    {
        "weight-ranges": lambda insert, _: replace(insert, weight_ranges="mse"),
        "hessian-ranges": _hessian_ranges,
    }
)
"""Rungs that change how weights are quantized; the last one climbed decides."""

MENDING: Mapping[str, Callable[[Lesson], Pass]] = MappingProxyType(
    {
        "gptq": _gptq,
        "round-weights": _learned_rounding,
        "correct-bias": _correct_bias,
        "finetune": _finetuned,
    }
)
"""Rungs that change codes, in this order: whatever is climbed first, mean errors go behind all that
rounds layer by layer; what moves everything together starts from there."""
