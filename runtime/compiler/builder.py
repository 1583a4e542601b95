"""Makes quantized models of choices; observes each tensor once per method."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.io_types import float_edges
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import (
    FINISH,
    FINISH_CODES,
    START_CODES,
    TIDY,
    WIDE_TARGETS,
    folding,
)
from onnxfold.passes.quantize.convert_float32 import computes_in_others
from onnxfold.passes.quantize.input_moments import InputMoments
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.integer_io import IntegerIo
from onnxfold.passes.quantize.overrides import Override, Overrides
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.quantize_dynamic import QuantizeDynamic
from onnxfold.passes.quantize.quantize_weights import QuantizeWeights
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.store_float16 import StoreFloat16
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.cache import CalibrationCache
from onnxfold.runtime.calibrate.calibrate import collect
from onnxfold.runtime.compiler.choice import Choice
from onnxfold.runtime.compiler.defects import OF_THE_USER
from onnxfold.runtime.compiler.layers import linear_layers
from onnxfold.runtime.compiler.options import LINEAR, MORE_TYPES_OPSET, CompileOptions
from onnxfold.runtime.compiler.rungs import (
    INSERTING,
    MENDING,
    PREPARING,
    Lesson,
    applicable,
    round_stored_weights,
)
from onnxfold.runtime.compiler.verified import GATE_FEEDS
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.verify.compare import compare_models

_QUANTIZING = (InsertQdq, QuantizeDynamic, QuantizeWeights, StoreFloat16)
_LEAST_ERROR = "weight-ranges"
_ROUNDED = "gptq"
_RUNGS_WITHOUT_RANGES = {"dynamic": _LEAST_ERROR, "weights": _ROUNDED}
_NOT_REACHED = "the calibration data has no value for any tensor to quantize"
_ORACLE_FEEDS = 1
"""Asked of a rung where rounding alone grows: the proof of the result asks more."""
_KEPT = 8
"""Models that are kept: a rung starts from the one before it."""


@dataclass(frozen=True)
class _Stage:
    """A model and how it came about.

    Attributes:
        model: The model.
        passes: The passes that made it.
        idle: The rungs that changed nothing in it.
        in_float: Nodes that could not be quantized, and why.
    """

    model: ir.Model
    passes: tuple[Pass, ...] = ()
    idle: frozenset[str] = frozenset()
    in_float: Mapping[str, str] = field(default_factory=dict[str, str])

    def then(self, rung: str, model: ir.Model, pass_: Pass, *, modified: bool) -> _Stage:
        """This stage after one more rung."""
        if modified:
            return replace(self, model=model, passes=(*self.passes, pass_))
        return replace(self, idle=self.idle | {rung})

    def quantized(self, pass_: Pass) -> _Stage:
        """This stage after a pass that quantizes."""
        done = Pipeline((pass_,)).run(self.model.clone())
        remarks = [remark for _, result in done.results for remark in result.remarks]
        stage = self.then("", done.model, pass_, modified=done.modified)
        return replace(stage, in_float={each.node: each.reason for each in remarks})


class Builder:
    """Makes the models of choices from one optimized float model.

    Attributes:
        optimized: That model; not modified.
        feeds: What ranges and errors are taken from.
        failures: Choices whose model could not be built, by name, with the error.
    """

    def __init__(
        self,
        optimized: ir.Model,
        feeds: FeedSource,
        options: CompileOptions,
        progress: Progress,
        judging: FeedSource | None = None,
    ) -> None:
        """Open the calibration cache, where there is one.

        Args:
            optimized: The float model; not modified.
            feeds: What ranges and errors are taken from.
            options: What the user asked for.
            progress: Told of each run over the data.
            judging: What the result is proven on: rungs that change the float model have to keep
                their contracts there too.

        Raises:
            UsageError: The calibration cache belongs to another model or other data.
        """
        self.optimized = optimized
        self.feeds = feeds
        self.failures: dict[str, Exception] = {}
        self._gates = [each.first(GATE_FEEDS) for each in (feeds, judging) if each is not None]
        fold = folding(options.target, costs=options.costs, reduce_range=options.reduce_range)
        finish = f",{FINISH}" if options.target == "ort" else ""
        fold = f"{START_CODES},{fold},{FINISH_CODES}" if options.target == "ort" else fold
        self._fold = parse_passes(fold)
        self._moments: dict[ir.Model, InputMoments] = {}
        self._means: dict[ir.Model, dict[str, Array]] = {}
        self._lessons: dict[tuple[object, ...], Pass] = {}
        self._tidy = parse_passes(f"{TIDY}{finish}")
        self._insertion = options.insertion
        self._mode = options.mode
        self._keeps_pairs = options.mode == "16x8" and options.target not in WIDE_TARGETS
        self._progress = progress
        self._prepared: dict[tuple[str, ...], _Stage] = {(): _upgraded(optimized, options)}
        self._caches: dict[tuple[str, ...], CalibrationCache] = {}
        self._kept: OrderedDict[tuple[object, ...], _Stage] = OrderedDict()
        self._caches[()] = self._open_cache(options.calibration_cache, optimized)

    def passes(self, choice: Choice) -> tuple[Pass, ...]:
        """The passes that turn the optimized float model into what ``choice`` asks for."""
        return (*self._quantized(choice).passes, *self._finish(choice))

    def build(self, choice: Choice) -> ir.Model | None:
        """The finished model of ``choice``; None where that quantizes nothing, or fails."""
        try:
            quantized = self.quantize(choice)
            if quantized is None:
                return None
            return Pipeline(self._finish(choice)).run(quantized.clone()).model
        except OF_THE_USER:
            raise
        except Exception as error:  # noqa: BLE001 (the float model is there already)
            self.failures[choice.name] = error
            return None

    def quantize(self, choice: Choice) -> ir.Model | None:
        """The same before it is folded: with Q/DQ pairs. Not to be modified."""
        stage = self._quantized(choice)
        return stage.model if _is_quantized(stage) else None

    def _finish(self, choice: Choice) -> tuple[Pass, ...]:
        """What comes after quantization; only static schemes leave something to fold."""
        if choice.scheme != "static" or self._keeps_pairs:
            return self._tidy
        if self._mode != "full-integer":
            return self._fold
        model = self._prepare(_of(choice, PREPARING)).model
        edges = sorted(float_edges(model))
        known = self._calibrated(choice, edges)
        ranges = Ranges({name: known[name] for name in edges if name in known})
        return (IntegerIo(ranges, "s8"), *self._fold)

    def in_float(self, choice: Choice) -> Mapping[str, str]:
        """The nodes that ``choice`` could not quantize, and why."""
        return self._quantized(choice).in_float

    def is_idle(self, choice: Choice) -> bool:
        """Whether the last rung of ``choice`` changed nothing."""
        last = choice.rungs[-1] if choice.rungs else ""
        if last in PREPARING:
            # Known before anything is quantized, which takes most of the time.
            return last in self._prepare(_of(choice, PREPARING)).idle
        return bool(last) and last in self._quantized(choice).idle

    def _quantized(self, choice: Choice) -> _Stage:
        mending = _of(choice, MENDING)
        key = (
            *(choice.scheme, choice.op_types, choice.skip),
            *(choice.calibration, frozenset(choice.rungs), choice.lessons, choice.in_16_bits),
        )
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if choice.scheme != "static":
            stage = self._quantize_weights(choice)
        else:
            stage = self._mend(choice, mending[-1]) if mending else self._insert(choice)
        self._kept[key] = stage
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return stage

    def _mend(self, choice: Choice, rung: str) -> _Stage:
        before = replace(choice, rungs=tuple(each for each in choice.rungs if each != rung))
        stage = self._quantized(before)
        if not _is_quantized(stage):
            return stage
        mend = self._learned(choice, rung, stage.model)
        done = Pipeline((mend,)).run(stage.model.clone())
        return stage.then(rung, done.model, mend, modified=done.modified)

    def _learned(self, choice: Choice, rung: str, quantized: ir.Model) -> Pass:
        """The pass of a mending rung: taken over where ``choice`` says so, else learned."""
        skip = choice.skip if choice.lessons is None else choice.lessons
        wide = choice.in_16_bits if choice.lessons is None else ()
        key = (choice.op_types, skip, wide, choice.calibration, frozenset(choice.rungs), rung)
        if choice.lessons is not None and key in self._lessons:
            return applicable(self._lessons[key], quantized, choice.skip)
        original = self._prepare(_of(choice, PREPARING)).model
        mend = MENDING[rung](self._lesson(original, quantized, choice.rungs))
        if choice.lessons is None:
            self._lessons[key] = mend
        return mend

    def _insert(self, choice: Choice) -> _Stage:
        prepared = self._prepare(_of(choice, PREPARING))
        insert = replace(self._insertion, op_types=choice.op_types, skip=choice.skip)
        if choice.in_16_bits:
            # What the user says of a layer comes later, and so goes before.
            wide = (Override(name=each, precision="16") for each in choice.in_16_bits)
            insert = replace(insert, overrides=Overrides((*wide, *insert.overrides.entries)))
        needed = tensors_to_observe(prepared.model, insert.placement_options)
        ranges = self._calibrated(choice, needed)
        if needed and ranges.keys().isdisjoint(needed):
            layers = linear_layers(prepared.model)
            return replace(prepared, in_float=dict.fromkeys(layers, _NOT_REACHED))
        insert = replace(insert, ranges=Ranges({n: ranges[n] for n in needed if n in ranges}))
        if choice.in_16_bits:
            prepared = _after(prepared, f"upgrade-opset{{to={MORE_TYPES_OPSET}}},infer-shapes")
            if prepared.model.graph.opset_imports.get("", 0) < MORE_TYPES_OPSET:
                return prepared
        for rung in _of(choice, INSERTING):
            insert = INSERTING[rung](insert, self._lesson(prepared.model, prepared.model))
        return prepared.quantized(insert)

    def _quantize_weights(self, choice: Choice) -> _Stage:
        """Schemes that need no ranges of activations; only some rungs are for them."""
        prepared = self._prepare(_of(choice, PREPARING))
        stored = QuantizeWeights(form="nbits", op_types=choice.op_types, skip=choice.skip)
        if choice.scheme == "weights" and _ROUNDED in choice.rungs:
            stored = round_stored_weights(stored, self._lesson(prepared.model, prepared.model))
        quantize: Pass = stored
        if choice.scheme == "float16":
            quantize = StoreFloat16()
        if choice.scheme == "dynamic":
            ranges: Literal["max", "mse"] = "mse" if _LEAST_ERROR in choice.rungs else "max"
            quantize = QuantizeDynamic(choice.op_types, weight_ranges=ranges, skip=choice.skip)
        stage = prepared.quantized(quantize)
        others = {*MENDING, *INSERTING} - {_RUNGS_WITHOUT_RANGES.get(choice.scheme, "")}
        return replace(stage, idle=stage.idle | (others & set(choice.rungs)))

    def _prepare(self, rungs: tuple[str, ...]) -> _Stage:
        """The float model after ``rungs``; a pass that breaks its contract on it is left out."""
        if rungs in self._prepared:
            return self._prepared[rungs]
        before = self._prepare(rungs[:-1])
        pass_ = PREPARING[rungs[-1]](self._lesson(before.model, before.model))
        done = Pipeline((pass_,)).run(before.model.clone())
        # What changes numbers is judged by what becomes of it, not by a few feeds.
        judged = pass_.contract is Contract.APPROXIMATE
        kept = done.modified and all(
            judged
            or compare_models(
                before.model, done.model, few, pass_.contract, oracle_feeds=_ORACLE_FEEDS
            ).verdict.passed
            for few in self._gates
        )
        stage = before.then(rungs[-1], done.model, pass_, modified=kept)
        self._prepared[rungs] = stage
        return stage

    def _calibrated(self, choice: Choice, needed: Sequence[str]) -> Ranges:
        rungs, method = _of(choice, PREPARING), choice.calibration
        model = self._prepare(rungs).model
        cache = self._caches.setdefault(rungs, CalibrationCache())
        known = cache.ranges(method)
        if all(name in known for name in needed):
            return known
        # One run over the data for all starting choices: what they observe differs a little.
        widths = (PlacementOptions(), PlacementOptions(LINEAR))
        usual = [name for each in widths for name in tensors_to_observe(model, each)]
        missing = [name for name in dict.fromkeys((*needed, *usual)) if name not in known]
        self._progress.stage(f"calibrating ({method})", self.feeds.count)
        found = collect(
            *(model, missing, self.feeds),
            method=method,
            shard=self.feeds.shard,
            progress=self._progress,
        ).ranges()
        return cache.add(method, found)

    def _lesson(
        self, original: ir.Model, quantized: ir.Model, rungs: tuple[str, ...] = ()
    ) -> Lesson:
        return Lesson(
            *(original, quantized, self.feeds, self._progress),
            rungs=rungs,
            moments=self._moments,
            means=self._means.setdefault(original, {}),
        )

    def _open_cache(self, path: Path | None, model: ir.Model) -> CalibrationCache:
        if path is None:
            return CalibrationCache()
        self._progress.stage("hashing the calibration data")
        return CalibrationCache.open(path, model, self.feeds)


def _upgraded(model: ir.Model, options: CompileOptions) -> _Stage:
    """``model`` with the data and at the opset that the types asked for need."""
    stage = _Stage(model)
    if computes_in_others(model):
        stage = _after(stage, f"convert-float32,{TIDY}")
    if model.graph.opset_imports.get("", 0) < options.needed_opset:
        stage = _after(stage, f"upgrade-opset{{to={options.needed_opset} strict}},infer-shapes")
    return stage


def _after(stage: _Stage, text: str) -> _Stage:
    passes = parse_passes(text)
    done = Pipeline(passes).run(stage.model.clone())
    return replace(stage, model=done.model, passes=(*stage.passes, *passes))


def _is_quantized(stage: _Stage) -> bool:
    return any(isinstance(each, _QUANTIZING) for each in stage.passes)


def _of(choice: Choice, stage: Mapping[str, object]) -> tuple[str, ...]:
    """The rungs of ``choice`` that belong to a stage, in the order of the stage."""
    return tuple(rung for rung in stage if rung in choice.rungs)
