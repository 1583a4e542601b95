"""Products of float data and packed weights, computed in float.

ONNX Runtime makes MatMulNBits of DequantizeLinear and MatMul itself, but then rounds the data to
int8 on the way (accuracy_level 4), unless the session is told not to. Written down here, it
computes what the graph says, and 4-bit weights are as fast as float ones or faster. 8-bit ones are
not: they are dequantized by a Cast and a Mul, which ONNX Runtime computes when it loads the model.
The file stays small, and the product is one of float weights. Microseconds on one thread, 8 bits:

    rows x 768 x 3072     1       16      128
    MatMulNBits, float    5700    6800    11700
    Cast, MatMul          264     1080    5980
    MatMulNBits, int8     62      830     4370     inexact: ONNX Runtime's own
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array, constant_tensor
from onnxfold.passes.fold.misread import sources
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.builder import CONTRIB
from onnxfold.passes.fold.types import is_dequantize
from onnxfold.passes.fold.unread import erase_unread
from onnxfold.passes.nbits import (
    is_block_size,
    packed_weights,
    packed_zero_points,
    plain_block_size,
)
from onnxfold.passes.rewriter import Rewriter

_LARGE = 8  # bits
_IN_FLOAT = 1  # MatMulNBits' accuracy_level: data and sums are float32
_BITS = {
    ir.DataType.INT4: 4,
    ir.DataType.UINT4: 4,
    ir.DataType.INT8: 8,
    ir.DataType.UINT8: 8,
}
_SIGNED = (ir.DataType.INT4, ir.DataType.INT8)

_ADVICE = "or set session.qdq_matmulnbits_accuracy_level=1 where it runs"


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Weights of a product, [K, N], as unsigned codes.

    Attributes:
        codes: uint8, [K, N].
        zero_points: uint8, [blocks, N].
        scales: float32, [blocks, N].
        bits: 4 or 8.
        block: Rows that share a scale.
        uniform: Whether all rows do.
    """

    codes: Array
    zero_points: Array
    scales: Array
    bits: int
    block: int
    uniform: bool


def pack_weights(plan: Plan, rewriter: Rewriter) -> None:
    """Write products of float data with 4- or 8-bit weights so that they stay what they are."""
    for node in [each for graph in plan.graphs for each in graph]:
        weights = _weights(node)
        if weights is not None and weights.bits == _LARGE and weights.uniform:
            _write_cast(node, weights, rewriter)
        elif weights is not None:
            _write(node, weights, rewriter)


def keep_weights_unpacked(plan: Plan, rewriter: Rewriter) -> None:
    """Keep ONNX Runtime from packing weights, where com.microsoft is not to be written.

    It does not where a scale for all weights is a vector of one element; for others it is said
    what the session has to be told.
    """
    for node in [each for graph in plan.graphs for each in graph]:
        dequantize = _packed(node)
        scale = None if dequantize is None else constant_array(dequantize.inputs[1])
        if dequantize is None or scale is None or _weights(node) is None:
            continue
        if scale.size != 1:
            rewriter.remark(
                node,
                "its weights alone are quantized: ONNX Runtime rounds the data to int8 for them",
                f"quantize the data too, {_ADVICE}",
            )
        elif scale.ndim == 0:
            _write_as_vectors(node, dequantize, rewriter)


def _packed(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of the weights, where ONNX Runtime would pack them; else None."""
    if node.domain or node.op_type not in ("Gemm", "MatMul") or sources(node):
        return None
    data, value = node.inputs[0], node.inputs[1]
    if data is None or data.dtype != ir.DataType.FLOAT or data.shape is None or value is None:
        return None
    if len(data.shape) < 2 or any(node.attributes.get_int(key, 0) for key in ("transA", "transB")):
        return None
    if any(node.attributes.get_float(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return None
    producer = value.producer()
    if producer is not None and _transposes(producer) and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer if producer is not None and is_dequantize(producer) else None


def _transposes(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain:
        return False
    return tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0)


def _weights(node: ir.Node) -> PackedWeights | None:
    dequantize = _packed(node)
    if dequantize is None or node.inputs[1] is None:
        return None
    tensor, scale = constant_tensor(dequantize.inputs[0]), constant_array(dequantize.inputs[1])
    if tensor is None or scale is None or tensor.dtype not in _BITS or scale.dtype != np.float32:
        return None
    zero_value = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
    zero_tensor = constant_tensor(zero_value)
    if (zero_value is not None and zero_tensor is None) or len(tensor.shape) != 2:
        return None
    codes: Array = tensor.numpy().astype(np.int16)
    zero: Array = np.zeros((), np.int16)
    if zero_tensor is not None:
        zero = zero_tensor.numpy().astype(np.int16)
    block = dequantize.attributes.get_int("block_size", 0)
    axis = dequantize.attributes.get_int("axis", 1) % 2
    if node.inputs[1].producer() is not dequantize:
        codes, scale, zero = np.transpose(codes), np.transpose(scale), np.transpose(zero)
        axis = 1 - axis
    if codes.size == 0 or not _is_packed_along(axis, block, scale):
        return None
    rows = block or plain_block_size(codes.shape[0])
    shape = (-(-codes.shape[0] // rows), codes.shape[1])
    offset = 1 << (_BITS[tensor.dtype] - 1) if tensor.dtype in _SIGNED else 0
    return PackedWeights(
        codes=(codes + offset).astype(np.uint8),
        zero_points=np.broadcast_to(zero + offset, shape).astype(np.uint8),
        scales=np.broadcast_to(scale, shape),
        bits=_BITS[tensor.dtype],
        block=rows,
        uniform=not block,
    )


def _is_packed_along(axis: int, block: int, scale: Array) -> bool:
    """Whether MatMulNBits can hold the scales: one for all, per column, or per block of rows."""
    if not block:
        return scale.size == 1 or axis == 1
    return axis == 0 and is_block_size(block)


def _write(node: ir.Node, weights: PackedWeights, rewriter: Rewriter) -> None:
    depth, columns = weights.codes.shape
    arrays = {
        "packed": packed_weights(weights.codes, weights.bits, weights.block),
        "scales": np.ascontiguousarray(np.transpose(weights.scales)).reshape(-1),
        "zero_points": packed_zero_points(weights.zero_points, weights.bits),
    }
    old, output = node.inputs[1], node.outputs[0]
    assert old is not None
    with rewriter.step("pack-weights", node):
        inputs = [
            rewriter.constant(node, np.ascontiguousarray(array), name=f"{old.name}_{name}")
            for name, array in arrays.items()
        ]
        product = rewriter.insert(
            node,
            "MatMulNBits",
            [node.inputs[0], *inputs],
            name=f"{output.name}_matmulnbits",
            attributes={
                "K": depth,
                "N": columns,
                "bits": weights.bits,
                "block_size": weights.block,
                "accuracy_level": _IN_FLOAT,
            },
            domain=CONTRIB,
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            product = rewriter.insert(
                node,
                "Add",
                [product, node.inputs[2]],
                name=f"{output.name}_add",
                dtype=ir.DataType.FLOAT,
                shape=output.shape,
            )
        rewriter.replace_node(node, [product])
    erase_unread(old, rewriter)


def _write_cast(node: ir.Node, weights: PackedWeights, rewriter: Rewriter) -> None:
    """The weights in the operators of DequantizeLinear, which ONNX Runtime computes beforehand."""
    old = node.inputs[1]
    assert old is not None
    shape, real = weights.codes.shape, ir.DataType.FLOAT
    name = f"{old.name}_real"
    zero = weights.zero_points[:1].astype(np.float32)
    scale = np.ascontiguousarray(weights.scales[:1]).astype(np.float32)
    with rewriter.step("cast-weights", node):
        codes = rewriter.constant(node, weights.codes, name=f"{old.name}_codes")
        value = rewriter.insert(
            node, "Cast", [codes], name=name, attributes={"to": int(real)}, dtype=real, shape=shape
        )
        for op_type, constant in (("Sub", zero), ("Mul", scale)):
            parameter = rewriter.constant(node, constant, name=name)
            value = rewriter.insert(
                node, op_type, [value, parameter], name=name, dtype=real, shape=shape
            )
        rewriter.set_input(node, 1, value)
    erase_unread(old, rewriter)


def _write_as_vectors(node: ir.Node, dequantize: ir.Node, rewriter: Rewriter) -> None:
    """Scale and zero point as vectors of one element."""
    with rewriter.step("guard-packed", node):
        for index, value in enumerate(dequantize.inputs[1:], start=1):
            tensor = constant_tensor(value)
            if value is None or tensor is None:
                continue
            vector = ir.Tensor(tensor.numpy().reshape(1), dtype=tensor.dtype)
            constant = rewriter.constant(dequantize, vector, name=f"{value.name}_vector")
            rewriter.set_input(dequantize, index, constant)
