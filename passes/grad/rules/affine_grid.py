"""Gradient of AffineGrid, which is linear in its matrix."""

from __future__ import annotations

import numpy as np

from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("AffineGrid")
def affine_grid(call: Call, b: Builder) -> Gradients:
    """D theta of (p, 1) theta^T: the gradient times each point p of the grid, summed over points.

    The points are the grid of the matrix that changes nothing.
    """
    theta, g = call.x(0), call.gradient
    axes = rank_of(g) - 2
    neutral = b.constant(np.eye(axes, axes + 1, dtype=dtype_of(theta).numpy()))
    alike = b.op("Expand", neutral, b.shape(theta), like=theta)
    points = b.op(
        "AffineGrid", alike, call.x(1), align_corners=call.int("align_corners", 0), like=g
    )
    ones = b.op("Expand", b.number(1, theta), b.op("Slice", b.shape(points), b.ints(0), b.ints(-1)))
    augmented = b.op("Concat", points, b.unsqueeze(ones, -1), axis=-1)
    # As matrices of points by coordinates, for each sample.
    rows = b.op("Reshape", augmented, b.ints(0, -1, axes + 1))
    flows = b.op("Reshape", g, b.ints(0, -1, axes))
    return (b.op("MatMul", b.transpose(flows, (0, 2, 1)), rows, like=theta),)
