"""Linear operators that act along one axis, as matrices that are read off the operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of


def identity_of(b: Builder, x: ir.Value, axis: int) -> ir.Value:
    """The identity as large as one axis of ``x``: an operator on its rows is its matrix."""
    size = b.dim(x, axis)
    zero = ir.tensor(np.zeros(1, dtype_of(x).numpy()))
    return b.op("EyeLike", b.op("ConstantOfShape", b.op("Concat", size, size, axis=0), value=zero))


def times_transposed(
    b: Builder, gradient: ir.Value, matrix: ir.Value, axis: int, rank: int
) -> ir.Value:
    """The gradient of what ``matrix`` was applied to.

    Args:
        b: Writes the nodes.
        gradient: Of what came out.
        matrix: [input size, output size]: rows of an identity, after the operator.
        axis: The axis that it acts along.
        rank: The number of dimensions of ``gradient``.
    """
    if axis == rank - 1:
        return b.op("MatMul", gradient, b.op("Transpose", matrix, perm=[1, 0]))
    if axis == rank - 2:
        return b.op("MatMul", matrix, gradient)
    order = [*(each for each in range(rank) if each != axis), axis]
    last = b.op("Transpose", gradient, perm=order)
    product = b.op("MatMul", last, b.op("Transpose", matrix, perm=[1, 0]))
    return b.op("Transpose", product, perm=[order.index(each) for each in range(rank)])
