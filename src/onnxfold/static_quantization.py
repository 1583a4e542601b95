"""``onnxfold.quantize_static``: in place of ONNX Runtime's function, with the same arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxfold.compiling import compile
from onnxfold.outcome import Model, Outcome
from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.compiler.options import Preset
from onnxfold.runtime.places import check_file
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.verify.budget import Budget

_LOG = logging.getLogger("onnxfold")

_TARGETS = {"QDQ": "qdq", "QOperator": "ort"}
_ACTIVATIONS = {"QUInt8": "u8", "QInt8": "s8", "QUInt16": "u16", "QInt16": "s16"}
_WEIGHTS = {"QInt8": "s8", "QUInt8": "u8", "QInt4": "s4", "QUInt4": "u4", "QInt16": "s16"}
_METHODS = {"MinMax": "min-max", "Entropy": "entropy", "Percentile": "percentile"}

_OWN_DECISION = frozenset(
    {
        *("CalibTensorRangeSymmetric", "CalibStridedMinMax", "CalibMovingAverageConstant"),
        *("CalibMaxIntermediateOutputs", "SmoothQuant", "SmoothQuantAlpha", "SmoothQuantFolding"),
        *("ForceQuantizeNoInputCheck", "MatMulConstBOnly", "AddQDQPairToWeight"),
        *("OpTypesToExcludeOutputQuantization", "DedicatedQDQPair", "MinimumRealRange"),
        *("QDQOpTypePerChannelSupportToAxis", "QDQKeepRemovableActivations", "QuantizeBias"),
        *("QDQDisableWeightAdjustForInt32Bias", "EnableSubgraph", "DefaultTensorType"),
        *("UseQDQContribOps", "CalibOpset"),
    }
)
"""Extra options of ONNX Runtime that onnxfold decides by itself, by measurement."""


def quantize_static(
    model_input: Model,
    model_output: str | os.PathLike[str],
    calibration_data_reader: object,
    quant_format: object = None,
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool | None = None,
    reduce_range: bool | None = None,
    activation_type: object = None,
    weight_type: object = None,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    calibrate_method: object = None,
    calibration_providers: Sequence[str] | None = None,
    extra_options: Mapping[str, Any] | None = None,
    calibration_cache_path: str | os.PathLike[str] | None = None,
    *,
    budget: Budget | str | float | None = None,
    preset: Preset | None = None,
    config: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Quantize a model as ``onnxruntime.quantization.quantize_static`` is asked to; prove it.

    Takes that function's arguments, its enumerations too; what is None onnxfold chooses, by
    measurement. The result is folded to integer operators and never slower than the original;
    where nothing is both within the budget and faster it is the optimized float model.

    Args:
        model_input: The float model; not modified.
        model_output: Where the result is written.
        calibration_data_reader: An object with ``get_next()``, or any other data that ``compile``
            takes; half of it calibrates, the other half judges.
        quant_format: ``QDQ`` for Q/DQ pairs (target ``qdq``), ``QOperator`` or None for integer
            operators of ONNX Runtime (target ``ort``).
        op_types_to_quantize: Operators that may be quantized; None or empty for all that can be.
        per_channel: One weight scale per output channel; None for yes.
        reduce_range: Give weights 7 bits where x86 machines without VNNI would saturate.
        activation_type: ``QUInt8``, ``QInt8``, ``QUInt16`` or ``QInt16``.
        weight_type: ``QInt8``, ``QUInt8``, ``QInt4``, ``QUInt4`` or ``QInt16``.
        nodes_to_quantize: Names of the linear nodes to quantize; None or empty for all.
        nodes_to_exclude: Names of nodes to leave in float.
        use_external_data_format: Without effect: data too large for one file lies beside it.
        calibrate_method: ``MinMax``, ``Entropy`` or ``Percentile``; None for the nearest.
        calibration_providers: Only ``CPUExecutionProvider`` there is.
        extra_options: ``ActivationSymmetric``, ``WeightSymmetric``, ``CalibMovingAverage`` and
            ``CalibPercentile`` are heeded; what onnxfold decides by itself is logged and left.
        calibration_cache_path: A file that keeps the ranges for the next time.
        budget: What may be lost; see ``compile``.
        preset: How much is tried for accuracy; see ``compile``.
        config: A TOML file of options; see ``compile``.
        progress: Told how far it is.

    Returns:
        The model that was written, with the evidence for it.

    Raises:
        UsageError: An argument has no counterpart, or ``compile`` refuses it.
        NotEquivalentError: The result breaks a contract or the budget.
    """
    output = Path(model_output)
    check_file(output)
    if calibration_providers and set(calibration_providers) != {"CPUExecutionProvider"}:
        raise UsageError("calibration_providers: onnxfold calibrates on the CPU; leave it out")
    options: dict[str, Any] = {
        "target": _name("quant_format", quant_format, _TARGETS) or "ort",
        "activations": _name("activation_type", activation_type, _ACTIVATIONS),
        "weights": _name("weight_type", weight_type, _WEIGHTS),
        "calibration": _name("calibrate_method", calibrate_method, _METHODS),
    }
    for name, value in (extra_options or {}).items():
        options.update(_extra_option(name, value))
    outcome = compile(
        model_input,
        data=calibration_data_reader,
        config=config,
        budget=budget,
        preset=preset,
        per_channel=per_channel,
        reduce_range=reduce_range,
        op_types=op_types_to_quantize,
        only=nodes_to_quantize,
        skip=nodes_to_exclude,
        calibration_cache=calibration_cache_path,
        progress=progress,
        **options,
    )
    if use_external_data_format:
        _LOG.info("use_external_data_format has no effect: one file is written where it can be")
    outcome.save(output)
    return outcome


def _name(argument: str, value: object, names: Mapping[str, str]) -> str | None:
    """What onnxfold calls a member of one of ONNX Runtime's enumerations, or its name."""
    if value is None:
        return None
    text = str(getattr(value, "name", value))
    if text not in names:
        raise UsageError(f"{argument}: '{text}' is not one of {', '.join(names)}")
    return names[text]


def _extra_option(name: str, value: Any) -> dict[str, Any]:
    if name in _HEEDED:
        return _HEEDED[name](value)
    if name not in _OWN_DECISION:
        hint = did_you_mean(name, sorted({*_HEEDED, *_OWN_DECISION}))
        raise UsageError(f"extra_options: '{name}' has no counterpart{hint}")
    _LOG.info("extra option %s is left: onnxfold decides that by measurement", name)
    return {}


_HEEDED: Mapping[str, Callable[[Any], dict[str, Any]]] = MappingProxyType(
    {
        "ActivationSymmetric": lambda value: {"symmetric": bool(value)},
        "WeightSymmetric": lambda value: {} if value else {"weights": "u8"},
        "CalibMovingAverage": lambda value: {"calibration": "moving-average"} if value else {},
        "CalibPercentile": lambda value: {
            "calibration": f"percentile{{percentile={float(value):g}}}"
        },
    }
)
