"""Gradients of what moves elements between channels and space."""

from __future__ import annotations

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("DepthToSpace")
def depth_to_space(call: Call, b: Builder) -> Gradients:
    """Space to depth; then, for CRD, blocks and channels change places."""
    x, block = call.x(0), call.int("blocksize", 1)
    moved = b.op("SpaceToDepth", call.gradient, blocksize=block)
    if call.string("mode", "DCR") == "DCR":
        return (b.reshape_like(moved, x),)
    blocks_first = b.op("Concat", b.ints(0, block * block, -1), b.op("Shape", x, start=2), axis=0)
    swapped = b.op("Transpose", b.op("Reshape", moved, blocks_first), perm=[0, 2, 1, 3, 4])
    return (b.reshape_like(swapped, x),)


@vjp("SpaceToDepth")
def space_to_depth(call: Call, b: Builder) -> Gradients:
    """Depth to space."""
    return (b.op("DepthToSpace", call.gradient, blocksize=call.int("blocksize", 1)),)
