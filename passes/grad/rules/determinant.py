"""Gradient of the determinant."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_LARGEST = 16
"""Largest matrix; one matrix product is written for each row."""


@vjp("Det")
def det(call: Call, b: Builder) -> Gradients:
    """D det x = adj(x)^T dx, with the adjugate by Faddeev and LeVerrier; singular x included."""
    x = call.x(0)
    rank = rank_of(x)
    size = None if x.shape is None else x.shape[rank - 1]
    if not isinstance(size, int) or size > _LARGEST:
        raise call.refusal(f"matrices larger than {_LARGEST}, or of unknown size")
    order = [*range(rank - 2), rank - 1, rank - 2]
    cofactors = b.transpose(_adjugate(b, x, size), order)
    return (b.mul(b.unsqueeze(call.gradient, -2, -1), cofactors),)


def _adjugate(b: Builder, x: ir.Value, size: int) -> ir.Value:
    """M_1 = I, M_(k+1) = A M_k - tr(A M_k) / k I; the adjugate is M_n, negated for even n."""
    identity = b.constant(np.eye(size, dtype=dtype_of(x).numpy()))
    found = b.op("Expand", identity, b.shape(x), like=x)
    for step in range(1, size):
        product = b.op("MatMul", x, found)
        trace = b.reduce_sum(b.mul(product, identity), -2, -1)
        found = b.sub(product, b.mul(b.scale(trace, 1 / step), identity))
    return found if size % 2 else b.neg(found)
