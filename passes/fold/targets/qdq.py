"""Target ``qdq``: the same decisions as canonical Q/DQ graphs, one DequantizeLinear a consumer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.accumulate import has_coarse_bias, residual_bias
from onnxfold.passes.fold.lowering import (
    AveragePool,
    Clamp,
    Concat,
    Extremum,
    Function,
    Interpolation,
    Linear,
    Lookup,
    Lowering,
    Move,
    Operand,
    Product,
    Reduction,
    Refusal,
    Requantize,
    RunningSum,
    Scatter,
    Select,
    Softmax,
    Sum,
)
from onnxfold.passes.fold.rules.refusals import not_rounded
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.products import channel_shape, has_batched_channels
from onnxfold.passes.fold.targets.target import Target, shift_through_real
from onnxfold.passes.fold.types import DEQUANTIZE, is_quantize

_FLOAT = ir.DataType.FLOAT


def write(lowering: Lowering, build: Builder, *, real_biases: bool = False) -> Sequence[ir.Value]:
    """Write ``lowering`` down as DequantizeLinear, the float op, QuantizeLinear.

    Args:
        lowering: What is written.
        build: Where.
        real_biases: Whether biases are float numbers instead of dequantized int32 codes.
    """
    match lowering:
        case Linear():
            return [_linear(lowering, build, real_biases=real_biases)]
        case Requantize():
            return [_requantize(lowering, build)]
        case Sum() | Product() | Concat():
            inputs = [_real(each, lowering.node.outputs[0], build) for each in lowering.operands]
            return [_op(lowering.node, inputs, lowering.type, build)]
        case Scatter(operands=(data, updates), node=node):
            output = node.outputs[0]
            inputs = [_real(data, output, build), node.inputs[1], _real(updates, output, build)]
            return [_op(node, inputs, lowering.type, build)]
        case Reduction() | AveragePool() | Softmax():
            inputs = [_real(lowering.operand, lowering.node.outputs[0], build)]
            return [_op(lowering.node, inputs, lowering.type, build)]
        case Clamp():
            return [_clamp(lowering, build)]
        case Move():
            return _move(lowering, build)
        case _:
            raise TypeError(f"no lowering of {type(lowering).__name__}")


def decline(lowering: Lowering) -> Refusal | None:
    """What is canonical as it stands."""
    match lowering:
        case Linear(type=None, operator=ir.Node(op_type="Conv")):
            return not_rounded(lowering.output)
        case Linear() if has_batched_channels(lowering):
            return Refusal("batched weights need one scale per tensor")
        case AveragePool(node=ir.Node(attributes=attributes)) if "dilations" in attributes:
            return Refusal("onnxruntime does not load a quantized AveragePool with dilations")
        case Function() | Interpolation() | Extremum() | Lookup() | RunningSum() | Select():
            return Refusal(_CANONICAL)
        case Sum():
            alone = lowering.covered == (lowering.node,) and lowering.constant is None
            return None if alone and lowering.node.op_type == "Add" else Refusal(_CANONICAL)
        case Reduction():
            pool = lowering.node.op_type == "GlobalAveragePool"
            return None if pool else Refusal(_CANONICAL)
        case _:
            return None


_CANONICAL = "in canonical Q/DQ form it is a float op between DequantizeLinear and QuantizeLinear"

TARGET = Target("qdq", False, write, decline, shift_through_real, keeps_names=True)

REAL_BIASES = replace(TARGET, write=partial(write, real_biases=True))
"""The same with float biases, for TensorRT, whose DequantizeLinear takes no int32."""


def _requantize(lowering: Requantize, build: Builder) -> ir.Value:
    output = lowering.node.outputs[0]
    codes = build.codes_of(lowering.reads[0])
    real = build.reals.get((codes, lowering.operand.type))
    if real is not None:
        return build.quantize(real, lowering.type, output)
    producer = codes.producer()
    # ONNX Runtime merges Q-DQ-Q-DQ into one pair, with other numbers.
    merges = producer is not None and is_quantize(producer)
    dequantize = build.dequantize_unfused if merges else build.dequantize
    return build.quantize(dequantize(codes, lowering.operand.type, output), lowering.type, output)


def _real(operand: Operand, like: ir.Value, build: Builder) -> ir.Value:
    codes = build.operand(operand, like.name or "operand")
    return build.dequantize(codes, operand.type, like)


def _real_of(value: ir.Value, like: ir.Value, build: Builder) -> ir.Value:
    known = build.types.get(value)
    assert known is not None
    return build.dequantize(build.codes_of(value), known.type, like)


def _op(
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    affine: AffineType,
    build: Builder,
) -> ir.Value:
    output = node.outputs[0]
    real = build.insert(node.op_type, inputs, output, _FLOAT, attributes=node.attributes)
    build.names[real] = output.name or build.names[real]
    return build.quantize(real, affine, output)


def _clamp(clamp: Clamp, build: Builder) -> ir.Value:
    data = clamp.reads[0]
    real = _real_of(data, clamp.node.outputs[0], build)
    inputs = [real if value is data else value for value in clamp.node.inputs]
    if data in build.types.code_dtypes:
        codes = [np.asarray(each, np.int64) for each in (clamp.low, clamp.high)]
        inputs = [real, *(build.constant(clamp.type.dequantize(each), "bound") for each in codes)]
    codes = _op(clamp.node, inputs, clamp.type, build)
    limits = clamp.type.dequantize(np.asarray(clamp.type.limits, np.int64))
    if all(value is real or _is_code(value, clamp.type, limits) for value in inputs):
        _remember_real(codes, clamp.type, build)
    return codes


def _is_code(value: ir.Value | None, affine: AffineType, limits: Array | None = None) -> bool:
    """Whether codes of ``affine`` stand exactly for a constant, brought within ``limits``."""
    number = constant_array(value)
    if number is None or number.dtype.kind != "f":
        return value is None
    number = number if limits is None else np.clip(number, limits[0], limits[1])
    return bool(np.all(affine.dequantize(affine.quantize(number)) == number))


def _move(move: Move, build: Builder) -> Sequence[ir.Value]:
    node = move.node
    known = build.types.get(move.reads[0] if move.reads else node.outputs[0])
    assert known is not None
    inputs: list[ir.Value | None] = list(node.inputs)
    for position in move.positions:
        value = inputs[position]
        assert value is not None
        inputs[position] = _real_of(value, node.outputs[0], build)
    if move.rounds:
        table = build.constant(move.constants[0], f"{node.outputs[0].name}_codes")
        inputs[0] = build.dequantize(table, known.type, node.outputs[0])
    inserted = build.rewriter.insert_node(
        build.anchor,
        node.op_type,
        inputs,
        name=f"{node.outputs[0].name}_real",
        attributes=node.attributes,
        outputs=len(node.outputs),
    )
    given = [inputs[each] for each in move.constants if each < len(inputs)]
    fills_are_codes = all(_is_code(each, known.type) for each in given)
    results: list[ir.Value] = []
    for old, new in zip(node.outputs, inserted.outputs, strict=True):
        is_real = build.types.get(old) is not None
        build.rewriter.set_type(new, _FLOAT if is_real else ir.DataType.INT64, old.shape)
        build.names[new] = old.name or ""
        results.append(build.quantize(new, known.type, old) if is_real else new)
        if is_real and not move.rounds and fills_are_codes:
            _remember_real(results[-1], known.type, build)
    return results


def _remember_real(codes: ir.Value, affine: AffineType, build: Builder) -> None:
    """Let another QuantizeLinear read what these codes were quantized from without rounding.

    Only where it takes them as ``affine``: behind a scaling the same codes stand for other numbers.
    """
    quantize = codes.producer()
    if quantize is not None and quantize.inputs[0] is not None:
        build.reals[codes, affine] = quantize.inputs[0]


def _linear(linear: Linear, build: Builder, *, real_biases: bool) -> ir.Value:
    output, name = linear.output, linear.output.name or "linear"
    inputs: list[ir.Value | None] = [
        _real(linear.x, output, build),
        build.dequantize(build.operand(linear.w, f"{name}_weights"), linear.w.type, output),
    ]
    op_type, attributes = _operator(linear)
    bias = _bias(linear, build, real=real_biases)
    apart = op_type == "MatMul" or _would_be_rounded(linear)
    if bias is not None and not apart:
        inputs.append(bias)
    real = build.insert(op_type, inputs, output, _FLOAT, attributes=attributes)
    if bias is not None and apart:
        real = build.insert("Add", [real, bias], output, _FLOAT)
    build.names[real] = output.name or build.names[real]
    return real if linear.type is None else build.quantize(real, linear.type, output)


def _would_be_rounded(linear: Linear) -> bool:
    """Whether a bias as an input would move more codes than it may: an Add is left alone.

    ONNX Runtime rounds a float bias of its own accord, also that of a product nothing rounds.
    """
    if linear.type is None and linear.bias_codes is not None:
        return residual_bias(linear) is not None
    return has_coarse_bias(linear)


def _operator(linear: Linear) -> tuple[str, Mapping[str, ir.Attr | int]]:
    """The op and its attributes; weights have transB and alpha folded in."""
    node = linear.operator
    if node.op_type == "Conv":
        return "Conv", node.attributes
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    is_matrix = shape is not None and len(shape) == 2
    if node.op_type == "Gemm" or (linear.bias is not None and is_matrix):
        return "Gemm", {"transA": 1} if linear.transposed else {}
    return "MatMul", {}


def _bias(linear: Linear, build: Builder, *, real: bool) -> ir.Value | None:
    """The bias: int32 codes at s_x s_w where the result is rounded, else the real number.

    That too where ``real`` says so.
    """
    if linear.bias is None:
        return None
    name = f"{linear.output.name}_bias"
    is_matmul = _operator(linear)[0] == "MatMul"
    rounded = linear.bias_codes is not None and linear.type is not None and not real
    if not rounded or is_matmul or _would_be_rounded(linear):
        bias = linear.bias.astype(np.float32)
        if _would_be_rounded(linear) and linear.w.codes is not None and not is_matmul:
            bias = bias.reshape(channel_shape(linear, bias))
        if is_matmul and linear.type is None and len(linear.output.shape or ()) > 2:
            # Of a vector ONNX Runtime makes the bias of a Gemm, and rounds it to int32 codes.
            bias = bias.reshape(1, -1)
        return build.constant(bias, name)
    assert linear.bias_codes is not None
    scale = np.asarray(linear.x.type.scale * linear.w.type.scale, np.float32)
    axis = None if linear.w.type.per_tensor else {"axis": 0}
    inputs = [build.constant(linear.bias_codes, name), build.constant(scale, "scale")]
    shape = list(linear.bias_codes.shape)
    return build.insert(DEQUANTIZE, inputs, linear.output, _FLOAT, attributes=axis, shape=shape)
