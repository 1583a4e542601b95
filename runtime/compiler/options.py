"""What the user asks of a compilation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from onnxfold.passes.errors import UsageError
from onnxfold.passes.presets import Mode
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.overrides import Overrides
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.recurrent_weights import RECURRENT_OPS
from onnxfold.passes.quantize.schemes import Activations, Weights
from onnxfold.passes.script import ScriptReference
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.calibrate.methods import method_text, parse_method
from onnxfold.runtime.compiler.choice import Choice, Ladder, Scheme
from onnxfold.runtime.compiler.config import OVERRIDES
from onnxfold.runtime.compiler.families import Family
from onnxfold.runtime.compiler.quality import Metric
from onnxfold.runtime.verify.budget import Budget

Target = Literal["ort", "standard", "integer", "qdq"]
Preset = Literal["fast", "balanced", "best"]

SEARCH = "search"
"""Instead of the name of a calibration method: several are tried, the nearest is kept."""

ASKED_FOR = "it is to stay in float (asked for)"

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_CHOICES = {
    "target": get_args(Target),
    "preset": get_args(Preset),
    "mode": get_args(Mode),
    "activations": get_args(Activations),
    "weights": get_args(Weights),
}
_RUNGS = (
    # Mean errors first: what the others gain is then measured without them.
    "correct-bias",
    "weight-ranges",
    "align-concat",
    "equalize",
    "smooth-quant",
    "hessian-ranges",
    "gptq",
    "round-weights",
    "finetune",
)
_DEAREST = "finetune"
"""A minute, for 0.2 dB at 8 bits (measured, behind the others): there layers in float cost less."""
_REACH_DB, _REACH_OF_4_BITS_DB = 6.0, 20.0
"""Dear rungs gain 1 to 3 dB each at 8 bits, and up to 8 at 4: what misses the budget by more needs
layers in float."""
MORE_TYPES_OPSET = 21
"""Of ai.onnx: the first with codes of 16 and of 4 bits, and with blocks."""
_DYNAMIC_OPS = ("MatMul", "Gemm", "LSTM")
_STORED_OPS = ("MatMul", "Gemm")
_MODES_WITHOUT_RANGES: dict[str | None, tuple[Scheme, tuple[str, ...]]] = {
    "dynamic-range": ("dynamic", (*_DYNAMIC_OPS, "GRU", "RNN")),
    "float16": ("float16", ()),
    "int4-weights": ("weights", (*_STORED_OPS, *RECURRENT_OPS)),
}
_RUNGS_OF_MODES = {"int4-weights": ("gptq",)}
_ACTIVATIONS_OF_MODES: dict[str, Activations] = {"full-integer": "s8", "16x8": "s16"}
_OF_PRODUCTS = ("transformer", "recurrent", "dense")
_CHEAP = ("weight-ranges", "align-concat", "equalize", "smooth-quant", "correct-bias")
_CHEAPER = ("quick-gelu",)
_SEARCHED = {
    "fast": ("min-max",),
    "balanced": ("min-max", "percentile"),
    "best": ("min-max", "percentile", "mse", "entropy"),
}
_ALWAYS = {"fast": (), "balanced": _CHEAP, "best": _RUNGS}


@dataclass(frozen=True)
class CompileOptions:
    """What the user asked for.

    Attributes:
        target: What the integer graph is made of.
        mode: A mode of TensorFlow Lite, by its name, or ``int4-weights``: instead of the search
            among schemes.
        budget: What may be lost.
        metric: The user's own measure of how good a model is; None for labels, where there are.
        metric_name: What reports call it.
        preset: How much is tried for accuracy: ``fast`` what the budget needs; ``balanced`` what
            costs seconds; ``best`` all there is.
        calibration: How ranges are found: a method, with its options in braces, or ``search``.
        calibration_cache: A file that keeps ranges from one compilation to the next.
        keep_slower: Quantize all that can be, however slow.
        costs: A file of costs that kernels are chosen by; empty for the table that is built in.
        reduce_range: Give weights 7 bits where x86 machines without VNNI would saturate.
        activations: Codes of activations.
        weights: Codes of weights.
        per_channel: One weight scale per output channel instead of one per tensor.
        symmetric: Zero points of activations in the middle of the codes.
        op_types: Operators that may be quantized; empty means all that can be.
        skip: Names of nodes to leave in float.
        only: Names of the linear nodes to quantize; empty means all.
        overrides: Exceptions, by operator, name or regular expression.
    """

    target: Target = "ort"
    mode: Mode | None = None
    budget: Budget = field(default_factory=Budget)
    metric: Metric | None = None
    metric_name: str = ""
    preset: Preset = "balanced"
    calibration: str = SEARCH
    calibration_cache: Path | None = None
    keep_slower: bool = False
    costs: str = ""
    reduce_range: bool = False
    activations: Activations = "u8"
    weights: Weights = "s8"
    per_channel: bool = True
    symmetric: bool = False
    op_types: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    overrides: Overrides = field(default_factory=Overrides)

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> CompileOptions:
        """From the options of ``onnxfold.compile`` and of configuration files, by name.

        Raises:
            UsageError: A value is none of those there are.
        """
        for name, known in _CHOICES.items():
            value = named.get(name)
            if value is not None and value not in known:
                hint = did_you_mean(str(value), known)
                raise UsageError(f"{name}: '{value}' is not one of {', '.join(known)}{hint}")
        values = {name: value for name, value in named.items() if name != OVERRIDES}
        values["budget"] = Budget.of(values.get("budget"))
        for name in ("op_types", "skip", "only"):
            values[name] = tuple(values.get(name, ()))
        if "calibration_cache" in values:
            values["calibration_cache"] = Path(values["calibration_cache"])
        if "costs" in values:
            values["costs"] = os.fspath(values["costs"])
        metric = values.get("metric")
        if isinstance(metric, str):
            values["metric"] = _script(metric).call
        if metric is not None:
            values["metric_name"] = getattr(metric, "__name__", str(metric).rpartition(":")[2])
        overrides = values.get("overrides", Overrides())
        if isinstance(overrides, str):
            overrides = Overrides.from_text(overrides)
        listed = Overrides.from_entries(named.get(OVERRIDES, ()))
        values["overrides"] = Overrides((*listed.entries, *overrides.entries))
        return cls(**values)

    @property
    def takes_first(self) -> bool:
        """Whether the first choice within the budget is taken, however slow it is here.

        So it is where the user says what to make; and another runtime's target is not to be
        judged by how fast ONNX Runtime is on it.
        """
        return self.keep_slower or self.mode is not None or self.target != "ort"

    @property
    def widens(self) -> bool:
        """Whether layers that miss the budget with 8 bits are tried with activations of 16.

        Target ``ort`` has no operators for them, and would leave a float one between Q/DQ pairs.
        """
        return self.target != "ort" and self.mode is None and self.activations in ("u8", "s8")

    @property
    def needed_opset(self) -> int:
        """The opset that the types need; 0 for any."""
        schemes = [self.insertion.scheme]
        schemes += [each.apply(schemes[0]) for each in self.overrides.entries]
        return MORE_TYPES_OPSET if any(each.newer_types for each in schemes) else 0

    def to_json(self) -> dict[str, Any]:
        """What was asked for, as a plain dict for reports; what is off or empty left out."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        plain = {
            "budget": {name: v for name, v in self.budget.to_json().items() if v is not None},
            "overrides": [each.to_json() for each in self.overrides.entries],
            "calibration_cache": str(self.calibration_cache or ""),
            "metric": self.metric_name,
            "metric_name": "",
        }
        return {name: plain.get(name, v) for name, v in values.items() if plain.get(name, v)}

    @property
    def insertion(self) -> InsertQdq:
        """The pass that quantizes, as far as the user says what it does."""
        return InsertQdq(
            Ranges({}),
            activations=_ACTIVATIONS_OF_MODES.get(self.mode or "", self.activations),
            weights=self.weights,
            per_channel=self.per_channel,
            symmetric=self.symmetric or self.mode == "16x8",
            only=self.only,
            overrides=self.overrides,
        )

    @property
    def ladder(self) -> Ladder:
        """The compensations to try, and which of them even where the budget is met."""
        few = self.weights in ("s4", "u4")
        rungs = _RUNGS if few or self.preset == "best" else _RUNGS[: _RUNGS.index(_DEAREST)]
        reach = _REACH_OF_4_BITS_DB if few else _REACH_DB
        # Kernels of ONNX Runtime; ``best`` gives no accuracy for time.
        cheaper = () if self.target != "ort" or self.preset == "best" else _CHEAPER
        return Ladder(rungs, frozenset(_ALWAYS[self.preset]), reach, cheaper)

    def starting_choices(self, family: Family) -> list[Choice]:
        """Where the search begins, the widest first.

        Args:
            family: Of the model: products and recurrent operators have schemes of their own.

        Raises:
            UsageError: There is no such calibration method.
        """
        searched = self.calibration == SEARCH
        named = _SEARCHED[self.preset] if searched else (self.calibration,)
        methods = [method_text(parse_method(each)) for each in named]
        linear = tuple(each for each in LINEAR if not self.op_types or each in self.op_types)
        widths = {"all operators": self.op_types, "linear operators": linear}
        if set(self.op_types) == set(linear):
            del widths["all operators"]
        in_float = tuple((name, ASKED_FOR) for name in sorted(self.skip))
        if self.mode in _MODES_WITHOUT_RANGES:
            scheme, ops = _MODES_WITHOUT_RANGES[self.mode]
            name, rungs = self.mode or "", _RUNGS_OF_MODES.get(self.mode or "", ())
            return [Choice(name, self.op_types or ops, in_float, rungs=rungs, scheme=scheme)]
        static = [
            Choice(f"{width} ({method})", op_types, in_float, calibration=method)
            for width, op_types in widths.items()
            for method in methods
        ]
        return static + (self._without_ranges(in_float) if family in _OF_PRODUCTS else [])

    def _without_ranges(self, in_float: tuple[tuple[str, str], ...]) -> list[Choice]:
        """Choices that need no ranges of activations; they are ONNX Runtime's own operators."""
        if self.takes_first or self.overrides or self.only or self.weights != "s8":
            return []
        named: dict[str, tuple[Scheme, tuple[str, ...]]] = {
            "dynamic ranges": ("dynamic", _DYNAMIC_OPS),
            "weights in 4 bits": ("weights", _STORED_OPS),
        }
        found: dict[str, tuple[Scheme, tuple[str, ...]]] = {
            name: (scheme, tuple(op for op in ops if not self.op_types or op in self.op_types))
            for name, (scheme, ops) in named.items()
        }
        return [
            Choice(name, ops, in_float, scheme=scheme)
            for name, (scheme, ops) in found.items()
            if ops
        ]


def _script(text: str) -> ScriptReference:
    try:
        return ScriptReference.from_text(text)
    except ValueError as error:
        raise UsageError(f"metric: {error}") from None
