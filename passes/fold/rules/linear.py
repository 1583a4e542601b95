"""Conv, Gemm and MatMul, with the bias that follows them, as one int32 accumulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.channel_affine import ChannelAffine
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.accumulate import (
    InexactError,
    accumulation_weights,
    bias_in_codes,
    channel_bias,
    negated_weights,
)
from onnxfold.passes.fold.lowering import Linear, Lowering, Operand, Refusal
from onnxfold.passes.fold.rules.normalization import batch_norm_step
from onnxfold.passes.fold.rules.operands import operand, reads, real_constant
from onnxfold.passes.fold.rules.refusals import not_quantized, touches_quantization
from onnxfold.passes.fold.types import Quantized, TypeState, is_wide
from onnxfold.passes.walk import use_count

_LARGEST_BYTE = 255


@dataclass(frozen=True, eq=False)
class _Product:
    """The product part of a linear op.

    Attributes:
        node: The op.
        x: The data.
        w: The second operand.
        channels: Number of output channels, where the weights are constant.
        axis: Axis of the output channels in the output: 1, or -1 for the last.
        biases: Real biases found so far, [channels] each.
        transposed: Whether x is read transposed.
    """

    node: ir.Node
    x: Operand
    w: Operand
    channels: int | None
    axis: int
    biases: tuple[Array, ...] = ()
    transposed: bool = False

    @property
    def weight_axis(self) -> int:
        """Axis of the output channels in the weights."""
        return 0 if self.axis == 1 or self.w.codes is None else self.w.codes.ndim - 1


def conv(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """1-D to 3-D, grouped and depthwise convolution."""
    if not touches_quantization(node, types):
        return None
    x, w = operand(node.inputs[0], types), types.get(node.inputs[1])
    if x is None or x.value is None:
        return _no_data(node, types)
    if w is None or w.codes is None:
        return Refusal(types.reason(node.inputs[1]), "quantize the weights to 8 bits")
    try:
        weights = accumulation_weights(w.type, w.codes, axis=0)
        biases = _own_bias(node, types, w.codes.shape[0], 1.0)
    except InexactError as error:
        return Refusal(str(error), error.advice)
    product = _Product(node, x, weights, w.codes.shape[0], 1, biases)
    return _finish(product, types)


def conv_transpose(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """No runtime has an integer kernel: it stays float."""
    if not touches_quantization(node, types):
        return None
    return Refusal("there is no integer kernel for ConvTranspose")


def matmul(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Products of matrices of any rank; both operands may be computed."""
    if not touches_quantization(node, types):
        return None
    x = operand(node.inputs[0], types)
    if x is None:
        return _no_data(node, types)
    if any(
        value is not None and value.shape is not None and len(value.shape) < 2
        for value in node.inputs
    ):
        return Refusal("a vector operand has no integer kernel", "give it two dimensions")
    known = types.get(node.inputs[1])
    if known is not None and known.codes is not None and x.value is not None:
        if known.codes.ndim < 2:
            return Refusal("a vector operand has no integer kernel", "give it two dimensions")
        try:
            weights = accumulation_weights(known.type, known.codes, axis=known.codes.ndim - 1)
        except InexactError as error:
            return Refusal(str(error), error.advice)
        return _finish(_Product(node, x, weights, known.codes.shape[-1], -1), types)
    w = operand(node.inputs[1], types)
    if w is None:
        return not_quantized(node.inputs[1], types)
    if _may_overflow(node, x.type, w.type):
        return Refusal("an int32 accumulator could overflow", "split the product along its depth")
    return _finish(_Product(node, x, w, None, -1), types)


def _may_overflow(node: ir.Node, x: AffineType, w: AffineType) -> bool:
    """Whether the depth, where it is known, is more than int32 holds at the largest codes."""
    depths = [
        value.shape[axis]
        for value, axis in zip(node.inputs, (-1, -2), strict=True)
        if value is not None and value.shape is not None
    ]
    depth = max((each for each in depths if isinstance(each, int)), default=0)
    return depth * _reach(x) * _reach(w) > np.iinfo(np.int32).max


def _reach(affine: AffineType) -> int:
    """The largest distance from the zero point of what a kernel reads: codes, or their halves."""
    return _LARGEST_BYTE if is_wide(affine) else affine.reach


def gemm(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Sum of alpha x w and beta c: alpha goes into the weights' scale, beta into the bias."""
    if not touches_quantization(node, types):
        return None
    x, w = operand(node.inputs[0], types), types.get(node.inputs[1])
    if x is None or x.value is None:
        return _no_data(node, types)
    if w is not None and w.codes is None:
        return _gemm_of_activations(node, x, types)
    if w is None or w.codes is None:
        return Refusal(types.reason(node.inputs[1]), "quantize the weights to 8 bits")
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha == 0:
        return Refusal("alpha is 0", "leave the product out")
    codes: Array = w.codes
    affine = w.type
    if node.attributes.get_int("transB", 0):
        axis = None if affine.axis is None else 1 - affine.axis
        codes = np.transpose(codes)
        affine = AffineType(affine.scale, affine.zero_point, affine.dtype, axis)
    if alpha != 1.0:
        affine = types.rescaled(affine, abs(alpha))
    try:
        weights = accumulation_weights(affine, codes, axis=1)
        weights = weights if alpha > 0 else negated_weights(weights)
        biases = _own_bias(node, types, codes.shape[1], node.attributes.get_float("beta", 1.0))
    except InexactError as error:
        return Refusal(str(error), error.advice)
    transposed = bool(node.attributes.get_int("transA", 0))
    product = _Product(node, x, weights, codes.shape[1], -1, biases, transposed=transposed)
    return _finish(product, types)


def _gemm_of_activations(node: ir.Node, x: Operand, types: TypeState) -> Lowering | Refusal | None:
    """A Gemm of two computed operands that is no more than their product."""
    w, alpha = operand(node.inputs[1], types), node.attributes.get_float("alpha", 1.0)
    if w is None:
        return not_quantized(node.inputs[1], types)
    turned = any(node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    if turned or alpha <= 0 or (len(node.inputs) > 2 and node.inputs[2] is not None):
        return Refusal(
            "a Gemm of two activations is more than their product",
            "write it as MatMul, Transpose and Add",
        )
    if _may_overflow(node, x.type, w.type):
        return Refusal("an int32 accumulator could overflow", "split the product along its depth")
    scaled = Operand(types.rescaled(w.type, alpha), w.value)
    return _finish(_Product(node, x, scaled, None, -1), types)


def _no_data(node: ir.Node, types: TypeState) -> Refusal | None:
    """Refusal for a linear op whose data has no codes; None where only its weights are packed."""
    if types.get(node.inputs[0]) is None and types.want(node.outputs[0]) is None:
        return Refusal(
            f"only its weights are quantized: {types.reason(node.inputs[0])}",
            f"quantize the activation '{node.inputs[0].name if node.inputs[0] else ''}'",
        )
    return not_quantized(node.inputs[0], types)


def _finish(product: _Product, types: TypeState) -> Lowering | Refusal:
    """Take in the scales and biases that follow, and decide how the result is rounded."""
    tail = _follow(product, types)
    output, covered, bias = tail.output, tail.covered, tail.bias
    want = types.want(output)
    try:
        total = bias_in_codes(product.x.type, tail.w, bias, axis=product.weight_axis)
    except InexactError as error:
        return Refusal(str(error), error.advice)
    if want is not None:
        types.put(output, Quantized(want))
    return Linear(
        node=covered[-1],
        reads=reads(product.x, total.w),
        covered=covered,
        operator=product.node,
        x=product.x,
        w=total.w,
        bias=bias,
        bias_codes=total.bias_codes,
        bound=total.bound,
        output=output,
        type=want,
        transposed=product.transposed,
    )


def _own_bias(node: ir.Node, types: TypeState, channels: int, beta: float) -> tuple[Array, ...]:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None or beta == 0:
        return ()
    bias = channel_bias(_addend(value, types), channels, rank=2, axis=-1)
    if bias is None:
        raise InexactError(
            f"its bias '{value.name}' is not one constant a channel", "fold constants first"
        )
    return (bias * beta,)


def _addend(value: ir.Value | None, types: TypeState) -> Array | None:
    """The real constant behind ``value``; what has int32 codes keeps all their bits (float64)."""
    known = types.get(value)
    if known is not None and known.codes is not None and known.type.dtype == ir.DataType.INT32:
        return known.type.exactly(known.codes)
    return real_constant(value, types)


@dataclass(frozen=True, eq=False)
class _Tail:
    """What follows a product, channel by channel.

    Attributes:
        output: The value at its end.
        covered: The product and the nodes that follow it.
        w: The second operand, in whose scales the factors are.
        bias: The sum of all that is added (float64, [channels]), or None.
    """

    output: ir.Value
    covered: tuple[ir.Node, ...]
    w: Operand
    bias: Array | None


def _follow(product: _Product, types: TypeState) -> _Tail:
    """Take in constant additions, multiplications and BatchNormalization after the product."""
    output, covered, w = product.node.outputs[0], [product.node], product.w
    bias = sum(product.biases[1:], product.biases[0]) if product.biases else None
    while types.want(output) is None and use_count(output) == 1 and not output.is_graph_output():
        follower, index = next(iter(output.uses()))
        if follower.domain or follower.graph is not product.node.graph:
            break
        step = _channel_step(follower, index, product, types)
        scaled = None if step is None else _scaled_weights(w, step[0], product)
        if step is None or scaled is None:
            break
        w, shift = scaled, step[1]
        bias = shift if bias is None else bias * step[0] + shift
        covered.append(follower)
        output = follower.outputs[0]
    return _Tail(output, tuple(covered), w, bias)


def _channel_step(
    follower: ir.Node, index: int, product: _Product, types: TypeState
) -> tuple[Array, Array] | None:
    """Scale and shift of each channel (float64) that ``follower`` gives its input ``index``."""
    source = follower.inputs[index]
    rank = None if source is None or source.shape is None else len(source.shape)
    if product.axis == 1:
        rank = product.w.codes.ndim if product.w.codes is not None else None
    elif product.node.op_type == "Gemm":
        rank = 2
    if product.channels is None:
        return None
    if follower.op_type == "Add":
        constant = _addend(follower.inputs[1 - index], types)
        bias = channel_bias(constant, product.channels, rank=rank, axis=product.axis)
        return None if bias is None else (np.ones(product.channels), bias)
    if follower.op_type == "BatchNormalization":
        return batch_norm_step(follower, types) if index == 0 and product.axis == 1 else None
    step = ChannelAffine.match(follower, channels=product.channels, axis=product.axis, rank=rank)
    return None if step is None or step.source is not source else (step.scale, step.shift)


def _scaled_weights(w: Operand, factor: Array, product: _Product) -> Operand | None:
    """Weights ``factor`` times as large; None where their codes cannot say so."""
    codes = w.codes
    if bool(np.all(factor == 1)):
        return w
    if codes is None or bool(np.any(factor == 0)):
        return None
    uniform = bool(np.all(factor == factor[0]))
    if not uniform and product.axis == -1 and codes.ndim > 2:
        return None
    if bool(np.any(factor < 0)):
        if np.any(w.type.zero_point) or np.min(codes) == np.iinfo(np.int8).min:
            return None
        shape = [-1 if axis == product.weight_axis else 1 for axis in range(codes.ndim)]
        codes = (codes * np.sign(factor).reshape(shape)).astype(np.int8)
    magnitude = np.abs(factor[0] if uniform else factor)
    scale = np.asarray(w.type.scale * magnitude, np.float32)
    if not bool(np.all(np.isfinite(scale) & (scale > np.finfo(np.float32).tiny))):
        return None
    zeros: Array = np.array(np.broadcast_to(w.type.zero_point, scale.shape), np.int8)
    axis = product.weight_axis if scale.ndim else None
    return Operand(AffineType(scale, zeros, w.type.dtype, axis), None, codes)


RULES = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
}
