"""The demosaicing network in integers, done naively and done well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxfold.passes.affine import AffineType, affine_from_range
from onnxfold.passes.constants import constant_array
from onnxfold.passes.linear import LINEAR_OPS
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE, TIDY, folding
from onnxfold.passes.quantize.align_concat import AlignConcat
from onnxfold.passes.quantize.correct_bias import CorrectBias
from onnxfold.passes.quantize.gptq import Gptq
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.overrides import Overrides
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.smooth_quant import SmoothQuant
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.channel_maxima import measure_channel_maxima
from onnxfold.runtime.calibrate.input_moments import measure_input_moments
from onnxfold.runtime.calibrate.layer_errors import measure_output_errors

Array = NDArray[Any]
Feeds = Sequence[dict[str, NDArray[np.float32]]]

_ALPHA = 0.9
"""Nearly all of the outliers go into weights: these have a scale a channel, and GPTQ."""
_SPARE = 2.0
"""One of 16 bits."""
_BLOCK = 32
_BLOCKS_OPSET = 21


def optimized(model: ir.Model) -> ir.Model:
    """Return the float network, simplified; the upsampler that only moves pixels says so."""
    return Pipeline(parse_passes(f"{OPTIMIZE},fuse-depth-to-space")).run(model.clone()).model


def integer(model: ir.Model, feeds: Feeds) -> ir.Model:
    """Return the network in integers throughout: ConvInteger and fixed-point requantization.

    What is joined with the mosaic takes the mosaic's range, so that its codes pass through as they
    came from the sensor; channels of one activation get like ranges (SmoothQuant). A scale for each
    tensor of activations, of the least squared error, and one for each output channel of weights;
    weights rounded together (GPTQ); mean errors taken out layer by layer; zero points folded into
    biases. The image is read off the last layer's sums, which are not rounded.

    Args:
        model: the float network, simplified.
        feeds: calibration data.
    """
    extremes = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    aligned = Pipeline((AlignConcat(extremes),)).run(model.clone()).model
    maxima = measure_channel_maxima(aligned, None, feeds)
    aligned = Pipeline((SmoothQuant(maxima, alpha=_ALPHA),)).run(aligned).model
    observed = tensors_to_observe(aligned, PlacementOptions())
    ranges = calibrate(aligned, observed, feeds, method="mse")
    ranges = Ranges({**ranges, **_of_the_mosaic(aligned, extremes)})
    return _in_integers(aligned, InsertQdq(ranges), feeds)


def wide_integer(model: ir.Model, feeds: Feeds) -> ir.Model:
    """Return the same with activations of 16 bits, of which kernels of 8 multiply either half.

    There are bits to spare: ranges are twice as wide as what was seen in the calibration data, and
    channels need not have like ranges, which would only make the weights less even.

    Args:
        model: the float network, simplified.
        feeds: calibration data.
    """
    model = _upgraded(model)
    extremes = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    aligned = Pipeline((AlignConcat(extremes),)).run(model.clone()).model
    seen = calibrate(aligned, tensors_to_observe(aligned, PlacementOptions()), feeds)
    wider = {name: (_SPARE * low, _SPARE * high) for name, (low, high) in seen.items()}
    ranges = Ranges({**wider, **_of_the_mosaic(aligned, extremes)})
    return _in_integers(aligned, InsertQdq(ranges, activations="u16"), feeds)


def _in_integers(model: ir.Model, insert: InsertQdq, feeds: Feeds) -> ir.Model:
    """Return ``model`` with Q/DQ pairs, weights rounded together, biases corrected, folded."""
    quantized = Pipeline((insert,)).run(model.clone()).model
    moments = measure_input_moments(model, None, feeds, quantized=quantized)
    quantized = Pipeline((Gptq(moments, centered=True),)).run(quantized).model
    errors = measure_output_errors(model, quantized, feeds)
    quantized = Pipeline((CorrectBias(errors),)).run(quantized).model
    _keep_sums(quantized)
    lower = parse_passes(f"infer-shapes,{folding('integer')},{TIDY}")
    return Pipeline(lower).run(quantized).model


def four_bits(model: ir.Model, feeds: Feeds) -> ir.Model:
    """Return the network with weights of 4 bits, as Q/DQ pairs.

    A scale for 32 input channels of one tap, of the least error of products; rounded together
    (GPTQ), mean errors taken out. Layers that read or make fewer than 32 channels, 1 % of all
    weights, have 8 bits; activations have 16.

    Args:
        model: the float network, simplified.
        feeds: calibration data.
    """
    model = _upgraded(model)
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    moments = measure_input_moments(model, None, feeds)
    small = [node for node in _linear(model) if min(_parameter(node, 1).shape[:2]) < _BLOCK]
    exceptions = [{"name": node.name, "weights": "s8", "block": 0} for node in small]
    insert = InsertQdq(
        ranges,
        activations="u16",
        weights="s4",
        weight_ranges="hessian",
        moments=moments,
        block=_BLOCK,
        overrides=Overrides.from_entries(exceptions),
    )
    quantized = Pipeline((insert,)).run(model.clone()).model
    quantized = Pipeline((Gptq(moments, centered=True),)).run(quantized).model
    errors = measure_output_errors(model, quantized, feeds)
    return Pipeline((CorrectBias(errors),)).run(quantized).model


def _upgraded(model: ir.Model) -> ir.Model:
    """Return the network for operators that know codes of 4 and 16 bits, and blocks."""
    passes = parse_passes(f"upgrade-opset{{to={_BLOCKS_OPSET}}},infer-shapes")
    return Pipeline(passes).run(model.clone()).model


def _of_the_mosaic(model: ir.Model, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """The network's input, what is joined with it and what that is moved from: all of one range."""
    source = model.graph.inputs[0].name or ""
    names = [source]
    joined = [node.inputs for node in model.graph if node.op_type == "Concat"]
    for value in (value for values in joined for value in values):
        moved = value
        while moved is not None:
            names.append(moved.name or "")
            node = moved.producer()
            is_moved = node is not None and node.op_type in ("DepthToSpace", "Slice")
            moved = node.inputs[0] if node is not None and is_moved else None
    return dict.fromkeys(names, ranges[source])


def _keep_sums(quantized: ir.Model) -> None:
    """Let the graph put out what its last layer computes, in front of the Q/DQ pair."""
    graph, output = quantized.graph, quantized.graph.outputs[0]
    dequantize = output.producer()
    codes = None if dequantize is None else dequantize.inputs[0]
    quantize = None if codes is None else codes.producer()
    assert dequantize is not None
    assert quantize is not None
    sums = quantize.inputs[0]
    assert sums is not None
    graph.outputs[0] = sums
    graph.remove([dequantize, quantize], safe=True)
    sums.name, sums.type, sums.shape = output.name, output.type, output.shape


def one_map(model: ir.Model, feeds: Feeds, *, compensated: bool) -> ir.Model:
    """Return the network with one affine map for all its activations and one for all its weights.

    Codes are of 8 bits and saturate. What they stand for is (code - zero point) * scale; whoever
    forgets to compensate for the zero points computes with code * scale.

    Args:
        model: the float network, simplified.
        feeds: calibration data.
        compensated: whether the zero points are taken into account.
    """
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    widest = (min(low for low, _ in ranges.values()), max(high for _, high in ranges.values()))
    insert = InsertQdq(Ranges(dict.fromkeys(ranges, widest)), per_channel=False)
    mapped = Pipeline((insert,)).run(model.clone()).model
    _share_weight_map(mapped, model, compensated=compensated)
    if not compensated:
        _forget_zero_points(mapped)
    return mapped


def _share_weight_map(mapped: ir.Model, model: ir.Model, *, compensated: bool) -> None:
    """Give linear operators what the codes of one map for all weights and biases stand for."""
    pairs = list(zip(_linear(mapped), _linear(model), strict=True))
    arrays = [_parameter(old, index) for _, old in pairs for index in (1, 2)]
    low, high = min(each.min() for each in arrays), max(each.max() for each in arrays)
    kind = affine_from_range(float(low), float(high), ir.DataType.UINT8)
    for node, old in pairs:
        for index in (1, 2):
            values = _meaning(kind, kind.quantize(_parameter(old, index)), compensated=compensated)
            name = f"{node.outputs[0].name}_{index}"
            value = ir.Value(name=name, const_value=ir.tensor(values, name=name))
            mapped.graph.initializers.add(value)
            node.replace_input_with(index, value)


def _meaning(kind: AffineType, codes: Array, *, compensated: bool) -> Array:
    if compensated:
        return kind.dequantize(codes).astype(np.float32)
    return codes.astype(np.float32) * kind.scale


def _forget_zero_points(mapped: ir.Model) -> None:
    name = "no_zero_point"
    zero = ir.Value(name=name, const_value=ir.tensor(np.zeros((), np.uint8), name=name))
    mapped.graph.initializers.add(zero)
    for node in mapped.graph:
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear" and source is not None:
            node.replace_input_with(2, zero)


def _linear(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in LINEAR_OPS]


def _parameter(node: ir.Node, index: int) -> Array:
    array = constant_array(node.inputs[index])
    assert array is not None
    return array
