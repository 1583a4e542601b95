"""What ONNX Runtime's optimizer takes for something else in a Q/DQ graph.

Each case was measured with 1.23 and 1.32 and has a test that shows it (test_fold_guards.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.types import Quantized, TypeState, is_dequantize, is_quantize

PROPAGATED = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Ops that ONNX Runtime puts further Q/DQ pairs around."""

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_REMOVED = frozenset({"Cast", "Dropout", "Expand", "Identity", "Slice"})
_PASSED = PROPAGATED | _REMOVED | {"Flatten", "Pad"}
_MERGED = _PASSED | {"Add", "BatchNormalization", "Clip", "Div", "LeakyRelu", "Mul", "Relu", "Sub"}
_FUSED = _LINEAR | {
    *("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul"),
    *("Resize", "Sigmoid", "Softmax", "Where"),
}
_DEPTH = 8  # how many ops are looked through: more than ONNX Runtime does
_INT32_LIMIT = 2**31
_ROUND_OPSET = 11
_SOFTMAX_OF_ONE_AXIS = 13
_MATRIX = 2
_CROP = "tf_crop_and_resize"
_STEP_TOLERANCE = 1e-6
_MOST_SOFTMAX_STEPS = 256


@dataclass(frozen=True, eq=False)
class Source:
    """Where dequantized data enters.

    Attributes:
        dequantize: The DequantizeLinear of computed codes.
        reader: The op that reads it: the op in question, or a movement on the way to it.
        index: The input of ``reader`` that does.
    """

    dequantize: ir.Node
    reader: ir.Node
    index: int


@dataclass(frozen=True, eq=False)
class Bias:
    """A quantized bias.

    Attributes:
        reader: The op that adds it.
        index: The input it is.
        known: Its codes and their type.
    """

    reader: ir.Node
    index: int
    known: Quantized


def sources(node: ir.Node) -> list[Source]:
    """Where the inputs of ``node`` are dequantized, possibly behind movements."""
    found = (_source(node, index, _PASSED) for index in range(len(node.inputs)))
    return [each for each in found if each is not None]


def unmoved_source(node: ir.Node) -> Source | None:
    """Where the data of ``node`` is dequantized, at once or behind ops that are removed."""
    return _source(node, 0, _REMOVED)


def unmoved_sums(node: ir.Node, index: int = 0) -> Source | None:
    """Where int32 data of ``node`` is dequantized, at once or behind ops that are removed."""
    reader = node
    for _ in range(_DEPTH):
        value = _input(reader, index)
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is not node.graph:
            return None
        if is_dequantize(producer):
            codes = producer.inputs[0]
            is_sum = codes is not None and codes.dtype == ir.DataType.INT32
            found = Source(producer, reader, index)
            return found if is_sum and constant_array(codes) is None else None
        if producer.domain or producer.op_type not in _REMOVED:
            return None
        reader, index = producer, 0
    return None


def quantize_after(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear of the output, at once or behind ops that are merged into ``node``."""
    for _ in range(_DEPTH):
        readers = [use.node for use in node.outputs[0].uses()]
        found = next((reader for reader in readers if is_quantize(reader)), None)
        if found is not None or len(readers) != 1:
            return found
        node = readers[0]
        if node.op_type not in _MERGED or node.domain:
            return None
    return None


def is_moved(node: ir.Node) -> bool:
    """Whether ONNX Runtime puts pairs around ``node``, or around a Reshape of its data.

    It makes a Gemm of a MatMul and an Add, and reshapes data of more dimensions for it.
    """
    if node.domain:
        return False
    shape = node.outputs[0].shape
    is_reshaped = node.op_type == "MatMul" and (shape is None or len(shape) > _MATRIX)
    return is_reshaped or node.op_type in PROPAGATED


def multiplies_codes(node: ir.Node) -> bool:
    """Whether ONNX Runtime may make a product of codes of ``node``.

    1.23 takes int32 codes for it as well, which its kernel refuses.
    """
    if node.domain or node.op_type not in ("Gemm", "MatMul"):
        return False
    producers = [None if value is None else value.producer() for value in node.inputs[:2]]
    return any(each is not None and is_dequantize(each) for each in producers)


def has_one_zero_point(weights: ir.Node, affine: AffineType) -> bool:
    """Whether weights with one scale a channel may be multiplied without a zero point a channel.

    1.23 makes a QGemm of them, with one zero point for all, and refuses it; around movements it
    puts pairs of uint8.
    """
    codes = weights.inputs[0]
    if affine.per_tensor or codes is None or codes.dtype != affine.dtype:
        return False
    readers = [use.node for use in weights.outputs[0].uses() if not use.node.domain]
    return any(
        each.op_type in PROPAGATED or (multiplies_codes(each) and bool(sources(each)))
        for each in readers
    )


def is_misread(node: ir.Node, plan: Plan, opset: int, *, float_weights: bool) -> bool:
    """Whether ``node``, a float op, is taken for an integer op that computes something else.

    Args:
        node: An op that stays float.
        plan: The fold's plan.
        opset: Its version of ai.onnx.
        float_weights: Whether the weights of linear ops that were refused become float.
    """
    if node.domain or node.op_type not in _FUSED or not sources(node):
        return False
    if node.op_type in _LINEAR and _source(node, 0, _PASSED) is not None:
        refused = float_weights and node in plan.refusals
        if _is_linear_misread(node, plan, float_weights=refused):
            return True
        if opset < _ROUND_OPSET and quantize_after(node) is not None and _float_bias(node).size:
            return True  # what quantizes the bias is not in this opset
    if node.op_type == "Softmax" and _is_apart(node):
        return False
    if node.op_type == "Softmax" and _is_softmax_misread(node, plan.types, opset):
        return True
    return _has_no_such_kernel(node, plan.types) or _has_scales_per_channel(node)


def _has_no_such_kernel(node: ir.Node, types: TypeState) -> bool:
    """Whether the integer kernel is wrong, or refuses what ``node`` asks for."""
    quantize = quantize_after(node)
    if quantize is None:
        return False
    match node.op_type:
        case "AveragePool":  # the session does not even load
            return "dilations" in node.attributes
        case "Resize":  # 1.23 interpolates between codes, and cuts what is behind the point off
            return node.attributes.get_string("mode", "nearest") != "nearest" or (
                node.attributes.get_string("coordinate_transformation_mode", "") == _CROP
            )
        case "Softmax":  # 1.23 gives int8 -128 where the probability is 1
            affine = types.parameters(quantize)
            return affine is not None and affine.dtype == ir.DataType.INT8
        case _:
            return False


def merged_source(quantize: ir.Node, types: TypeState) -> Source | None:
    """Where Q-DQ-Q-DQ begins its second half if both pairs are merged, which rounds only once."""
    source = _source(quantize, 0, _REMOVED)
    if source is None or not any(is_dequantize(use.node) for use in quantize.outputs[0].uses()):
        return None
    if not _comes_from_quantize(source.dequantize.inputs[0]):
        return None
    old, new = types.parameters(source.dequantize), types.parameters(quantize)
    return None if old is not None and new is not None and _same_numbers(old, new) else source


def misread_bias(node: ir.Node, types: TypeState) -> Bias | None:
    """The int32 bias of a product if it is taken for one in units of s_x s_w, and is not."""
    source, weights = _source(node, 0, _PASSED), types.get(_input(node, 1))
    found = quantized_bias(node, types)
    if source is None or weights is None or found is None:
        return None
    x, bias = types.parameters(source.dequantize), found.known.type
    if x is None or bias.dtype != ir.DataType.INT32 or not x.per_tensor:
        return None
    units: Array = x.scale.astype(np.float64) * weights.type.scale.astype(np.float64)
    fits = units.size == bias.scale.size or units.size == 1 or bool(np.all(units == units[0]))
    if fits and bias.symmetric and np.allclose(bias.scale, units, rtol=1e-5, atol=0.0):
        return None
    return found


def quantized_bias(node: ir.Node, types: TypeState) -> Bias | None:
    """The quantized constant that is added to the product ``node``."""
    if node.op_type == "Gemm":
        unit = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        return _bias(node, 2, types) if unit else None
    added = addition(node)
    return None if added is None else _bias(*added, types)


def addition(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add that alone reads the MatMul ``node``, and which input is added."""
    uses = list(node.outputs[0].uses())
    if node.op_type != "MatMul" or len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    reader, index = uses[0]
    return (reader, 1 - index) if reader.op_type == "Add" and not reader.domain else None


def _bias(reader: ir.Node, index: int, types: TypeState) -> Bias | None:
    known = types.get(_input(reader, index))
    return None if known is None or known.codes is None else Bias(reader, index, known)


def _is_linear_misread(node: ir.Node, plan: Plan, *, float_weights: bool) -> bool:
    weights, is_rounded = plan.types.get(_input(node, 1)), quantize_after(node) is not None
    if constant_array(_input(node, 1)) is not None:
        return is_rounded  # quantized again, per tensor
    if weights is None or weights.codes is None:
        return False
    if float_weights:
        return is_rounded
    axis, rank = weights.type.axis, weights.codes.ndim
    if axis is not None and (axis != _output_axis(node, rank) or rank == 3):
        return is_rounded or node.op_type in ("Gemm", "MatMul")
    if node.op_type == "Conv" and np.unique(weights.type.zero_point).size > 1:
        return is_rounded  # 1.23 fails at run time
    return is_rounded and _bias_overflows(node, weights.type, plan.types)


def _bias_overflows(node: ir.Node, weights: AffineType, types: TypeState) -> bool:
    """Whether a float bias, which is quantized in units of s_x s_w, leaves int32."""
    source, bias = _source(node, 0, _PASSED), _float_bias(node)
    x = None if source is None else types.parameters(source.dequantize)
    if x is None or bias.size == 0:
        return False
    units = float(np.min(x.scale.astype(np.float64))) * float(np.min(weights.scale))
    return float(np.max(np.abs(bias.astype(np.float64)))) / units >= _INT32_LIMIT


def _float_bias(node: ir.Node) -> Array:
    """The float constant that is added to a product; empty where there is none."""
    added = addition(node)
    bias = constant_array(_input(*added) if added is not None else _input(node, 2))
    return np.empty(0, np.float32) if bias is None or bias.dtype.kind != "f" else bias


def _output_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of the weights along which the output has one number each; None for a vector."""
    if node.op_type == "ConvTranspose":
        return 1
    if rank == 1:
        return None
    by_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    return 0 if by_rows else rank - 1


def _is_softmax_misread(node: ir.Node, types: TypeState, opset: int) -> bool:
    """Whether QLinearSoftmax takes the scale for another, or a result for 0.

    It computes with floor(1 / scale): 254 for a scale of 1/255 (float32). In ONNX Runtime 1.23
    what is more than 255 becomes 0, as in more steps than 256, and what is the only number too.
    """
    quantize = quantize_after(node)
    affine = None if quantize is None else types.parameters(quantize)
    if affine is None or not affine.per_tensor or affine.dtype.bitwidth != 8:
        return False
    scale: float = affine.scale.reshape(-1).tolist()[0]
    steps = math.floor(float(np.reciprocal(np.float32(scale))))
    if steps > _MOST_SOFTMAX_STEPS or abs(steps * scale - 1.0) > _STEP_TOLERANCE:
        return True
    return _may_be_one_number(node, opset)


def _may_be_one_number(softmax: ir.Node, opset: int) -> bool:
    """Whether there may be one number along the axis; before opset 13, along it and all behind."""
    shape = softmax.outputs[0].shape
    if shape is None:
        return True
    meant = opset >= _SOFTMAX_OF_ONE_AXIS
    axis = softmax.attributes.get_int("axis", -1 if meant else 1) % max(len(shape), 1)
    sizes = list(shape)[axis : axis + 1] if meant else list(shape)[axis:]
    return all(size == 1 or not isinstance(size, int) for size in sizes)


def _is_apart(node: ir.Node) -> bool:
    """Whether a Reshape lies between, behind several scales: ONNX Runtime moves one scale only."""
    found = _source(node, 0, frozenset({"Reshape"}))
    scale = None if found is None else constant_array(found.dequantize.inputs[1])
    return found is not None and found.reader is not node and scale is not None and scale.size > 1


def _has_scales_per_channel(node: ir.Node) -> bool:
    """Whether an activation that ``node`` reads or writes has one scale a channel."""
    if node.op_type in ("Add", "Mul") and any(_is_float(each) for each in node.inputs):
        return False  # a float constant beside it, and no integer kernel takes them
    pairs = [each.dequantize for each in sources(node)]
    after = quantize_after(node)
    pairs += [] if after is None else [after]
    scales = [constant_array(each.inputs[1]) for each in pairs]
    return any(scale is None or scale.size != 1 for scale in scales)


def _is_float(value: ir.Value | None) -> bool:
    """Whether ``value`` is a constant of real numbers."""
    array = constant_array(value)
    return array is not None and array.dtype.kind == "f"


def _source(node: ir.Node, index: int, passed: frozenset[str]) -> Source | None:
    for _ in range(_DEPTH):
        value = _input(node, index)
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is not node.graph:
            return None
        if is_dequantize(producer):
            return Source(producer, node, index) if _is_taken(producer.inputs[0]) else None
        if producer.domain or producer.op_type not in passed:
            return None
        node, index = producer, 0
    return None


def _is_taken(codes: ir.Value | None) -> bool:
    """Whether a pair that reads ``codes`` is ever fused: not of constants, nor of int32."""
    if codes is None or constant_array(codes) is not None:
        return False
    return codes.dtype != ir.DataType.INT32


def _comes_from_quantize(codes: ir.Value | None) -> bool:
    """Whether codes are quantized, at once or behind ops that are removed."""
    for _ in range(_DEPTH):
        producer = None if codes is None else codes.producer()
        if producer is None or producer.domain or producer.op_type not in _REMOVED:
            return producer is not None and is_quantize(producer)
        codes = producer.inputs[0]
    return False


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _same_numbers(old: AffineType, new: AffineType) -> bool:
    """Whether both types have the same scale and the same limits."""
    if old.axis != new.axis or not np.array_equal(old.scale, new.scale):
        return False
    return all(
        np.array_equal(a - old.zero_point.astype(np.int64), b - new.zero_point.astype(np.int64))
        for a, b in zip(old.limits, new.limits, strict=True)
    )
