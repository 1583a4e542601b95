"""u8 x s8 products on x86 machines without VNNI: which can saturate, and what they compute then.

VPMADDUBSW multiplies unsigned by signed bytes and adds two neighbouring products in an int16 that
saturates. ONNX Runtime's AVX2 and AVX-512 kernels use it wherever the weights are int8 (MLAS:
QgemmU8X8KernelAvx2.S, QgemvU8S8KernelAvx2.S, ConvSymKernelAvx2.S). They pair neighbours 2i and
2i + 1 along the summed axis, which is padded with a zero weight; a convolution sums over kernel
positions outside and over the channels of the group inside (ReorderFilter of qlinearconv.cc).
Exact on any machine: VNNI, uint8 weights (VPMADDWD), depthwise convolutions (they multiply in 32
bits), and ConvInteger, whose weights are the first operand of the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array, constant_scalar
from onnxfold.passes.walk import all_nodes

SAFE_MAGNITUDE = 64
"""Weights up to this magnitude never saturate: 2 * 64 * 255 <= 32767."""

_INT16 = (-32768, 32767)
_CODES = (0, 255)
_LOWEST = -128

_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "QLinearConv": (3,),
    "com.microsoft::QLinearConv": (3,),
    "QLinearMatMul": (3,),
    "com.microsoft::QGemm": (3,),
    "MatMulInteger": (1,),
    "com.microsoft::MatMulIntegerToFloat": (1,),
    "com.microsoft::DynamicQuantizeMatMul": (1,),
    "com.microsoft::DynamicQuantizeLSTM": (1, 2),
    "com.microsoft::QAttention": (1,),
}
"""Where the ops with these kernels take their weights."""

_TAKES_COMPUTED = frozenset({"QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"})
_QUANTIZES_ITS_DATA = frozenset({"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_KEEPS_CODES = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass(frozen=True, eq=False)
class LayerSaturation:
    """A layer whose result depends on the machine.

    Attributes:
        node: The layer.
        channels: How many of its output channels have a pair of weights that can saturate.
        of: How many output channels it has.
        largest: The largest magnitude that a pair of products can have; int16 ends at 32767.
    """

    node: ir.Node
    channels: int
    of: int
    largest: int


def saturating_layers(model: ir.Model) -> tuple[LayerSaturation, ...]:
    """The integer layers of ``model`` that can saturate without VNNI, in graph order.

    Looks at integer operators: a Q/DQ graph has to be folded first.
    """
    found = (_examine(node) for node in all_nodes(model))
    return tuple(layer for layer in found if layer is not None)


def summing_order(weights: Array, *, axis: int) -> Array:
    """Weights as the kernels sum them: [channels, K].

    Args:
        weights: Codes of a convolution [M, C/g, k...], or of a product [..., K, N].
        axis: The axis of the output channels: 0 for a convolution, else the last.
    """
    if weights.ndim < 2:
        return weights.reshape(1, -1)
    if axis == 0:
        return np.moveaxis(weights, 1, -1).reshape(weights.shape[0], -1)
    return np.swapaxes(weights, -1, -2).reshape(-1, weights.shape[-2])


def pair_limits(
    weights: Array, low: int = _CODES[0], high: int = _CODES[1], *, any_order: bool = False
) -> tuple[Array, Array]:
    """Per channel, the smallest and the largest sum of two products that are added first.

    Args:
        weights: int8 codes in the order of ``summing_order``, [channels, K].
        low: Smallest code of the data.
        high: Largest code of the data.
        any_order: Suppose that any two weights of a channel may meet (for kernels that pack
            otherwise): a bound for every order.

    Returns:
        Two int64 arrays of shape [channels].
    """
    wide = weights.astype(np.int64)
    if any_order:
        wide = _with_extremes_first(wide)
    pairs = _as_pairs(wide)
    upper = np.where(pairs > 0, pairs * high, pairs * low).sum(axis=-1)
    lower = np.where(pairs > 0, pairs * low, pairs * high).sum(axis=-1)
    return lower.min(axis=-1, initial=0), upper.max(axis=-1, initial=0)


def can_saturate(
    weights: Array, low: int = _CODES[0], high: int = _CODES[1], *, any_order: bool = False
) -> Array:
    """Which channels have a pair that leaves int16 for some data; bool, [channels].

    The bound is tight: data that reaches it exists. Arguments as of ``pair_limits``.
    """
    lower, upper = pair_limits(weights, low, high, any_order=any_order)
    return (lower < _INT16[0]) | (upper > _INT16[1])


def saturating_sums(data: Array, weights: Array) -> Array:
    """What the AVX2 kernels compute for ``data @ weights.T``.

    Args:
        data: uint8 codes, [rows, K].
        weights: int8 codes in the order of ``summing_order``, [channels, K].

    Returns:
        int64 sums, [rows, channels].
    """
    left: Array = _as_pairs(data.astype(np.int64))
    right: Array = _as_pairs(weights.astype(np.int64))
    sums: Array = np.zeros((data.shape[0], weights.shape[0]), np.int64)
    for pair in range(left.shape[1]):
        products: Array = left[:, pair] @ np.transpose(right[:, pair])
        sums = sums + np.clip(products, *_INT16)
    return sums


def _examine(node: ir.Node) -> LayerSaturation | None:
    key = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    rows = [
        _rows(node, node.inputs[index])
        for index in _WEIGHT_INPUTS.get(key, ())
        if index < len(node.inputs)
    ]
    known = [each for each in rows if each is not None]
    data = node.inputs[0]
    if data is not None and data.dtype == ir.DataType.INT8:
        return None
    if node.op_type in _TAKES_COMPUTED and not known:
        return _computed_operand(node, node.inputs[_WEIGHT_INPUTS[key][0]])
    if not known or _is_depthwise(node):
        return None
    low, high = _CODES if node.op_type in _QUANTIZES_ITS_DATA else _code_range(data)
    limits = [pair_limits(each, low, high) for each in known]
    saturates = [can_saturate(each, low, high) for each in known]
    channels = sum(int(np.count_nonzero(each)) for each in saturates)
    if not channels:
        return None
    largest = max(int(max(np.max(-lower), np.max(upper))) for lower, upper in limits)
    return LayerSaturation(node, channels, sum(each.size for each in saturates), largest)


def _computed_operand(node: ir.Node, value: ir.Value | None) -> LayerSaturation | None:
    """A product of two computed tensors, the second in int8, which can take any codes."""
    if value is None or value.dtype != ir.DataType.INT8 or constant_array(value) is not None:
        return None
    columns = value.shape[-1] if value.shape is not None and len(value.shape) else 1
    count = columns if isinstance(columns, int) else 1
    return LayerSaturation(node, count, count, -2 * _CODES[1] * _LOWEST)


def _rows(node: ir.Node, value: ir.Value | None) -> Array | None:
    """Constant int8 weights in the order they are summed."""
    codes = constant_array(value)
    if codes is None or codes.dtype != np.int8 or codes.size == 0:
        return None
    if node.attributes.get_int("transB", 0):
        codes = np.swapaxes(codes, -1, -2)
    return summing_order(codes, axis=0 if node.op_type == "QLinearConv" else -1)


def _is_depthwise(node: ir.Node) -> bool:
    if node.op_type != "QLinearConv":
        return False
    codes = constant_array(node.inputs[3])
    groups = node.attributes.get_int("group", 1)
    return codes is not None and codes.shape[1] == 1 and codes.shape[0] == groups


def _code_range(value: ir.Value | None) -> tuple[int, int]:
    """The codes a uint8 value can take, as far as a Clip on its way says."""
    low, high = _CODES
    while value is not None and (producer := value.producer()) is not None and not producer.domain:
        if producer.op_type == "Clip":
            bounds = [constant_scalar(each) for each in producer.inputs[1:3]]
            low = max(low, int(bounds[0] or 0)) if bounds else low
            high = min(high, int(bounds[1])) if len(bounds) > 1 and bounds[1] is not None else high
        elif producer.op_type not in _KEEPS_CODES:
            break
        value = producer.inputs[0]
    return low, high


def _with_extremes_first(rows: Array) -> Array:
    """The two largest weights of each row as one pair, the two smallest as the next."""
    ordered = np.sort(rows, axis=-1)
    return np.concatenate([ordered[:, :-3:-1], ordered[:, :2]], axis=-1)


def _as_pairs(rows: Array) -> Array:
    """[n, K] as [n, ceil(K / 2), 2], padded with zeros."""
    padded = np.pad(rows, [(0, 0), (0, rows.shape[1] % 2)])
    return padded.reshape(rows.shape[0], -1, 2)
