"""Folding a scale and a shift per channel into the linear operator before or after them."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.channel_affine import BiasedLinear, ChannelAffine, only_consumer
from onnxfold.passes.constants import Array, constant_tensor
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import axes_of
from onnxfold.passes.walk import use_count


def fold_into_producer(node: ir.Node, source: ir.Value | None, rewriter: Rewriter) -> None:
    """Fold ``node``, which scales and shifts ``source``, into the operator that makes it.

    A Squeeze between the two is seen through. Nothing happens where ``source`` is not linear with
    constant weights, has another consumer, or where the folded weights cannot be represented.
    """
    squeeze = _squeeze(source)
    inner = squeeze.inputs[0] if squeeze is not None else source
    biased = BiasedLinear.ending_in(inner) if inner is not None else None
    if source is None or biased is None or only_consumer(biased.output) is not (squeeze or node):
        return
    linear = biased.linear
    axis, rank = linear.output_channel_axis, linear.output_rank
    if squeeze is not None:
        removed = axes_of(squeeze, "axes", 1)
        if linear.bias_index is None or rank is None or removed is None:
            return
        gone = {each % rank for each in removed}
        axis, rank = axis % rank - sum(each < axis % rank for each in gone), rank - len(gone)
    affine = ChannelAffine.match(node, channels=linear.out_channels, axis=axis, rank=rank)
    if affine is None or affine.source is not source or only_consumer(source) is not node:
        return
    if _is_bias_of(node, biased):
        return
    weights = linear.scale_outputs(affine.scale)
    result = refold(rewriter, biased, weights, biased.bias * affine.scale + affine.shift)
    if result is None:
        return
    rewriter.add_source(linear.node)
    if squeeze is not None:
        rewriter.set_input(squeeze, 0, result)
    end = result if squeeze is None else source
    rewriter.replace_node(node, [end] + [None] * (len(node.outputs) - 1))
    if biased.add is not None and result is linear.output:
        rewriter.erase(biased.add)


def fold_into_consumer(node: ir.Node, rewriter: Rewriter, spread: float = math.inf) -> None:
    """Fold what scales and shifts the data of the linear operator ``node`` into its weights.

    A shift folds only where every output sums all taps: no padding, and not ConvTranspose.

    Args:
        node: The linear operator.
        rewriter: The gate.
        spread: By how much the factors of channels may differ, largest to smallest.
    """
    linear = LinearOp.match(node)
    producer = linear.data.producer() if linear is not None else None
    if linear is None or producer is None or only_consumer(linear.data) is not node:
        return
    affine = _match_before(linear, producer)
    biased = BiasedLinear.around(linear)
    if affine is None or biased is None or _spread(affine.scale) > spread:
        return
    if affine.shifts and not shift_folds(biased, producer):
        return
    bias = biased.bias + linear.response_to(affine.shift) if affine.shifts else biased.bias
    result = refold(rewriter, biased, linear.scale_inputs(affine.scale), bias)
    if result is None:
        return
    rewriter.set_input(node, linear.data_index, affine.source)
    rewriter.erase(producer)
    if result is not biased.output:
        rewriter.replace_value(biased.output, result)


def _spread(factors: Array) -> float:
    """The largest factor over the smallest that is none of 0; 1 where there is none."""
    sizes = np.abs(factors[factors != 0])
    return float(sizes.max() / sizes.min()) if sizes.size else 1.0


def rounded(array: Array, dtype: ir.DataType) -> Array | None:
    """``array`` rounded to ``dtype``; None where something overflows or is not a number."""
    # A NaN fails the comparison too.
    if not float(np.max(np.abs(array), initial=0.0)) <= float(_finfo(dtype).max):
        return None
    return array.astype(dtype.numpy())


def refold(
    rewriter: Rewriter, biased: BiasedLinear, weights: Array, bias: Array
) -> ir.Value | None:
    """Give a linear operator new weights and a new whole bias.

    Mutates only if everything can be represented in the operator's element type.

    Args:
        rewriter: The gate.
        biased: What to change.
        weights: As stored, float64.
        bias: [out_channels], float64.

    Returns:
        The value that now holds the biased result, or None where nothing was changed.
    """
    linear = biased.linear
    new_weights, new_bias = rounded(weights, linear.dtype), rounded(bias, linear.dtype)
    if new_weights is None or new_bias is None or sinks(weights, linear.dtype):
        return None
    replace_constant(rewriter, linear.node, linear.weight_index, new_weights)
    if linear.bias_index is None:
        return _rebias_matmul(rewriter, biased, new_bias)
    if linear.bias is not None or np.any(new_bias):
        replace_constant(rewriter, linear.node, linear.bias_index, new_bias, "bias")
    if linear.beta != 1.0:
        rewriter.set_attribute(linear.node, "beta", None)
    return linear.output


def replace_constant(
    rewriter: Rewriter, node: ir.Node, index: int, array: Array, role: str = "weight"
) -> None:
    """Let ``node`` read ``array`` at ``index``; drop the initializer it read if none else does."""
    old = node.inputs[index] if index < len(node.inputs) else None
    name = old.name if old is not None and old.name else f"{node.outputs[0].name}_{role}"
    rewriter.set_input(node, index, rewriter.constant(node, array, name=name))
    if old is None or not old.is_initializer() or use_count(old):
        return
    if not old.is_graph_input() and not old.is_graph_output():
        rewriter.remove_initializer(old)


def _rebias_matmul(rewriter: Rewriter, biased: BiasedLinear, bias: Array) -> ir.Value:
    linear, add = biased.linear, biased.add
    if linear.output_channel_axis == -2:
        bias = bias.reshape(-1, 1)
    if add is not None:
        index = 1 if add.inputs[0] is linear.output else 0
        replace_constant(rewriter, add, index, bias, "bias")
        return biased.output
    if not np.any(bias):
        return linear.output
    constant = rewriter.constant(linear.node, bias, name=f"{linear.output.name}_bias")
    return rewriter.insert(
        linear.node,
        "Add",
        [linear.output, constant],
        name=f"{linear.output.name}_biased",
        dtype=linear.dtype,
        shape=linear.output.shape,
        after=True,
    )


def sinks(array: Array, dtype: ir.DataType) -> bool:
    """Whether rounding to ``dtype`` leaves nothing but subnormals, short of digits."""
    return 0 < float(np.max(np.abs(array), initial=0.0)) < float(_finfo(dtype).smallest_normal)


def _squeeze(value: ir.Value | None) -> ir.Node | None:
    """The Squeeze that makes ``value``."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "Squeeze" and not node.domain else None


def _is_bias_of(node: ir.Node, biased: BiasedLinear) -> bool:
    """Whether ``node`` is the Add that a MatMul, which takes no bias, needs anyway."""
    return biased.add is None and biased.linear.bias_index is None and node.op_type == "Add"


def _match_before(linear: LinearOp, producer: ir.Node) -> ChannelAffine | None:
    """The scale and shift that make ``linear``'s data out of a value of the same shape."""
    rank = _data_rank(linear, producer)
    channels, axis = linear.in_channels, linear.data_channel_axis
    affine = ChannelAffine.match(producer, channels=channels, axis=axis, rank=rank)
    if affine is None or rank is None:
        return None
    # A smaller source is broadcast by the constant: then its channels are not the data's.
    shape = affine.source.shape
    if producer.op_type != "BatchNormalization" and (
        shape is None or len(shape) != rank or shape[axis] != channels
    ):
        return None
    return affine


def _data_rank(linear: LinearOp, producer: ir.Node) -> int | None:
    """Rank of the data, or of what the data is made of by scaling and shifting."""
    if linear.node.op_type != "MatMul":
        return len(linear.weight_shape)
    for value in (linear.data, *producer.inputs):
        if value is not None and value.shape is not None and constant_tensor(value) is None:
            return len(value.shape)
    return None


def shift_folds(biased: BiasedLinear, producer: ir.Node) -> bool:
    """Whether a shift of what ``producer`` hands on may go into the bias of the operator behind."""
    node = biased.linear.node
    match node.op_type:
        case "Conv":
            unpadded = not any(node.attributes.get_ints("pads", ()))
            return unpadded and node.attributes.get_string("auto_pad", "NOTSET") in (
                "NOTSET",
                "VALID",
            )
        case "Gemm":
            return True
        case "MatMul":
            # Without an Add to take it, the shift would only move to the other side.
            return biased.add is not None or producer.op_type == "BatchNormalization"
        case _:
            return False


def _finfo(dtype: ir.DataType) -> np.finfo[np.float32]:
    if dtype == ir.DataType.BFLOAT16:
        # The same exponents as float32.
        return np.finfo(np.float32)
    return np.finfo(dtype.numpy())
