"""Multiply-accumulates of linear operators, from the shapes of what they read and write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxfold.passes.op_kinds import is_integer_kernel, op_key

_Dims = Sequence[int]
_TRANSPOSABLE = frozenset(
    {"Gemm", "com.microsoft::FusedGemm", "com.microsoft::FusedMatMul", "com.microsoft::QGemm"}
)
_RECURRENT = ("GRU", "LSTM", "RNN")


def is_linear(node: ir.Node) -> bool:
    """Whether multiply-accumulates of ``node`` are counted."""
    return op_key(node) in _COUNTS


def node_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one run; a symbolic dimension counts 1; None where not known.

    A convolution reads ``C_in / group * kernel`` weights for each output, a transposed one spreads
    each input over ``C_out / group * kernel``, a matrix product reads its inner dimension, an
    attention operator multiplies queries with keys and the scores with the values.
    """
    count = _COUNTS.get(op_key(node))
    return None if count is None else count(node)


def integer_macs(node: ir.Node) -> int:
    """Those of ``node_macs`` that are done on integers: for QAttention only its projection."""
    if not is_integer_kernel(node):
        return 0
    if node.op_type == "QAttention":
        return _matrix_projection(node) or 0
    return node_macs(node) or 0


def _dims(node: ir.Node, position: int, *, output: bool = False) -> _Dims | None:
    """The dimensions of an input or output; None where it or its rank is not known."""
    values = node.outputs if output else node.inputs
    value = values[position] if position < len(values) else None
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in value.shape]


def _convolution(weights: int) -> Callable[[ir.Node], int | None]:
    def count(node: ir.Node) -> int | None:
        kernel, output = _dims(node, weights), _dims(node, 0, output=True)
        if kernel is None or output is None:
            return None
        return math.prod(output) * math.prod(kernel[1:])

    return count


def _transposed_convolution(node: ir.Node) -> int | None:
    source, kernel = _dims(node, 0), _dims(node, 1)
    if source is None or kernel is None:
        return None
    return math.prod(source) * math.prod(kernel[1:])


def _product(node: ir.Node) -> int | None:
    source, output = _dims(node, 0), _dims(node, 0, output=True)
    if not source or output is None:
        return None
    transposed = op_key(node) in _TRANSPOSABLE and node.attributes.get_int("transA", 0)
    inner = source[-2] if transposed and len(source) > 1 else source[-1]
    return math.prod(output) * inner


def _packed_product(node: ir.Node) -> int | None:
    output = _dims(node, 0, output=True)
    return None if output is None else math.prod(output) * node.attributes.get_int("K", 1)


def _recurrent(node: ir.Node) -> int | None:
    source, weights, recurrence = _dims(node, 0), _dims(node, 1), _dims(node, 2)
    if source is None or weights is None or recurrence is None or len(source) != 3:
        return None
    return source[0] * source[1] * (math.prod(weights) + math.prod(recurrence))


def _matrix_projection(node: ir.Node) -> int | None:
    source, weights = _dims(node, 0), _dims(node, 1)
    if source is None or weights is None or len(source) != 3:
        return None
    return source[0] * source[1] * math.prod(weights)


def _projected_attention(node: ir.Node) -> int | None:
    projection, source, weights = _matrix_projection(node), _dims(node, 0), _dims(node, 1)
    if projection is None or source is None or weights is None:
        return None
    batch, length, _ = source
    return projection + 2 * batch * length * length * (weights[-1] // 3)


def _attention(node: ir.Node) -> int | None:
    """Of separate queries, keys and values, as [batch, heads, length, size] or flattened."""
    query, key, output = _dims(node, 0), _dims(node, 1), _dims(node, 0, output=True)
    if query is None or key is None or output is None or len(query) not in (3, 4):
        return None
    return (math.prod(query) + math.prod(output)) * key[-2]


_COUNTS: dict[str, Callable[[ir.Node], int | None]] = {
    "Attention": _attention,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed_convolution,
    "Gemm": _product,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _product,
    **dict.fromkeys(_RECURRENT, _recurrent),
    "com.microsoft::Attention": _projected_attention,
    "com.microsoft::ConvIntegerToFloat": _convolution(1),
    "com.microsoft::DynamicQuantizeMatMul": _product,
    "com.microsoft::FusedConv": _convolution(1),
    "com.microsoft::FusedGemm": _product,
    "com.microsoft::FusedMatMul": _product,
    "com.microsoft::MatMulIntegerToFloat": _product,
    "com.microsoft::MatMulNBits": _packed_product,
    "com.microsoft::MultiHeadAttention": _attention,
    "com.microsoft::QAttention": _projected_attention,
    "com.microsoft::QGemm": _product,
    "com.microsoft::QLinearConv": _convolution(3),
}
