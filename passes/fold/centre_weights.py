"""Weights with a zero point a channel, which int8 does not hold: split over copies of channels.

w x = w1 x + w2 x where w = w1 + w2: what is beyond int8 reads a second copy of the input channel.
Microseconds in ONNX Runtime 1.32 on one thread, weights of all of uint8, and of int8 where few are
beyond: in float 2357 and 2354 (3x3, 64 channels of 56x56), 71 and 69 (16 of 32x32); split 1245 and
1017, 47 and 44. Less zero point times the sum of each window, in ConvInteger, comes to 1990 and 63.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.accumulate import InexactError, accumulation_weights
from onnxfold.passes.fold.types import DEQUANTIZE, TypeState, is_dequantize
from onnxfold.passes.fold.wants import find_wants, is_dequantized
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs

_INT8 = (-128, 127)


@dataclass(frozen=True)
class CentreWeights(Pass):
    """Give convolutions weights without zero points where each channel has another one.

    Those weights that int8 cannot hold then are split over copies of their input channels. Only
    between DequantizeLinear and QuantizeLinear, where the convolution becomes an integer one.
    """

    name: ClassVar[str] = "centre-weights"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Rewrite each such Conv."""
        graphs = tuple(all_graphs(model))
        types = TypeState(recode=False)
        find_wants(graphs, types)
        for node in [each for graph in graphs for each in graph]:
            if node.op_type != "Conv" or node.domain or types.want(node.outputs[0]) is None:
                continue
            centred = _centred(node, types)
            if centred is not None and is_dequantized(node.inputs[0], types):
                _rewrite(node, centred, rewriter)


def _centred(node: ir.Node, types: TypeState) -> Array | None:
    """Weights less their zero points (int64), where kernels do not take them as they are."""
    dequantize = None if node.inputs[1] is None else node.inputs[1].producer()
    if dequantize is None or not is_dequantize(dequantize):
        return None
    affine, codes = types.parameters(dequantize), constant_array(dequantize.inputs[0])
    if affine is None or codes is None or affine.axis != 0 or affine.dtype.bitwidth != 8:
        return None
    if affine.scale.size != codes.shape[0] or codes.dtype != affine.dtype.numpy():
        return None
    try:
        accumulation_weights(affine, codes, axis=0)
    except InexactError:
        zero_point = affine.zero_point.astype(np.int64)
        return codes.astype(np.int64) - zero_point.reshape([-1] + [1] * (codes.ndim - 1))
    return None


def _rewrite(node: ir.Node, centred: Array, rewriter: Rewriter) -> None:
    parts, channels = _parts(centred)
    groups, width = node.attributes.get_int("group", 1), centred.shape[1]
    order = np.concatenate([group * width + channels for group in range(groups)])
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weights is not None
    dequantize = weights.producer()
    assert dequantize is not None
    with rewriter.step("centre-weights", node, sources=[dequantize]):
        index = rewriter.constant(node, order.astype(np.int64), name=f"{data.name}_channels")
        more = rewriter.insert(
            node,
            "Gather",
            [data, index],
            name=f"{data.name}_copied",
            attributes={"axis": 1},
            dtype=ir.DataType.FLOAT,
            shape=_with_channels(data.shape, len(order)),
        )
        codes = rewriter.constant(node, parts, name=f"{weights.name}_centred")
        real = rewriter.insert(
            node,
            DEQUANTIZE,
            [codes, dequantize.inputs[1]],
            name=f"{weights.name}_split",
            attributes={"axis": 0},
            dtype=ir.DataType.FLOAT,
            shape=parts.shape,
        )
        rewriter.set_input(node, 0, more)
        rewriter.set_input(node, 1, real)


def _with_channels(shape: ir.Shape | None, channels: int) -> ir.Shape | None:
    return shape and ir.Shape([shape[0], channels, *shape[2:]])


def _parts(centred: Array) -> tuple[Array, Array]:
    """Weights as int8 that sum up to ``centred``, and which input channel each is for."""
    parts: list[Array] = []
    channels: list[int] = []
    rest, used = centred, list(range(centred.shape[1]))
    while used:
        part: Array = np.clip(rest, *_INT8)
        rest: Array = np.subtract(rest, part)
        parts.append(part[:, used].astype(np.int8))
        channels += used
        used = [channel for channel in used if np.any(rest[:, channel])]
    return np.concatenate(parts, axis=1), np.array(channels, np.int64)
