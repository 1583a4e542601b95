"""Gradients of matrix products."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("MatMul")
def matmul(call: Call, b: Builder) -> Gradients:
    """d(A B): dA = G B^T, dB = A^T G, summed over the batch dimensions that were broadcast."""
    left, right = call.x(0), call.x(1)
    a, w, g = left, right, call.gradient
    # A vector is a matrix of one row or one column.
    if rank_of(left) == 1:
        a, g = b.unsqueeze(a, 0), b.unsqueeze(g, -2 if rank_of(right) > 1 else -1)
    if rank_of(right) == 1:
        w, g = b.unsqueeze(w, 1), b.unsqueeze(g, -1)
    d_left = d_right = None
    if call.needed[0]:
        d_left = b.reshape_like(_left_gradient(a, w, g, b), left)
    if call.needed[1]:
        d_right = b.reshape_like(_right_gradient(a, w, g, b), right)
    return d_left, d_right


@vjp("Gemm")
def gemm(call: Call, b: Builder) -> Gradients:
    """d(alpha A' B' + beta C), with A' and B' transposed where the node says so."""
    a, w = call.x(0), call.x(1)
    trans_a, trans_b = call.int("transA", 0), call.int("transB", 0)
    g = call.gradient
    d_a = d_b = d_c = None
    alpha = call.float("alpha", 1.0)
    if call.needed[0]:
        d_a = (
            _product(b, w, g, trans_b, 1, alpha)
            if trans_a
            else _product(b, g, w, 0, 1 - trans_b, alpha)
        )
    if call.needed[1]:
        d_b = (
            _product(b, g, a, 1, trans_a, alpha)
            if trans_b
            else _product(b, a, g, 1 - trans_a, 0, alpha)
        )
    if len(call.needed) > 2 and call.needed[2]:
        d_c = b.sum_to(g, call.x(2))
        beta = call.float("beta", 1.0)
        d_c = d_c if beta == 1.0 else b.mul(d_c, b.number(beta, d_c))
    return d_a, d_b, d_c


def _product(
    b: Builder, left: ir.Value, right: ir.Value, trans_a: int, trans_b: int, alpha: float
) -> ir.Value:
    return b.op("Gemm", left, right, transA=trans_a, transB=trans_b, alpha=alpha)


def _left_gradient(a: ir.Value, w: ir.Value, g: ir.Value, b: Builder) -> ir.Value:
    """G B^T."""
    if rank_of(g) == 2:
        return b.op("Gemm", g, w, transB=1)
    return b.sum_to(b.op("MatMul", g, _transposed(w, b)), a)


def _right_gradient(a: ir.Value, w: ir.Value, g: ir.Value, b: Builder) -> ir.Value:
    """A^T G; one flat product where only A has batch dimensions, instead of a sum of many."""
    if rank_of(w) == 2:
        return b.op("Gemm", _rows(a, b), _rows(g, b), transA=1)
    return b.sum_to(b.op("MatMul", _transposed(a, b), g), w)


def _rows(value: ir.Value, b: Builder) -> ir.Value:
    """``value`` as one matrix: all dimensions but the last are one."""
    rank = rank_of(value)
    return value if rank == 2 else b.op("Flatten", value, axis=rank - 1)


def _transposed(value: ir.Value, b: Builder) -> ir.Value:
    order = list(range(rank_of(value)))
    order[-2:] = order[-1], order[-2]
    return b.transpose(value, order)
