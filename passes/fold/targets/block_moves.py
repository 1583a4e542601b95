"""SpaceToDepth and DepthToSpace on codes as the Transpose of blocks that they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.fold.targets.builder import Builder

_BYTE_BITS = 8


def space_to_depth(node: ir.Node, codes: ir.Value | None, build: Builder) -> ir.Value | None:
    """SpaceToDepth, which has no kernel for codes; None where a size is not known."""
    sizes = block_sizes(codes)
    if codes is None or sizes is None:
        return None
    block = node.attributes.get_int("blocksize", 1)
    channels, rows, columns = sizes[0], sizes[1] // block, sizes[2] // block
    split = [0, channels, rows, block, columns, block]
    joined = [0, channels * block * block, rows, columns]
    return _shuffled(codes, split, [0, 3, 5, 1, 2, 4], joined, node.outputs[0], build)


def wide_depth_to_space(node: ir.Node, codes: ir.Value | None, build: Builder) -> ir.Value | None:
    """DepthToSpace, which has no kernel for 16 bits; None for 8, or where a size is not known."""
    sizes = block_sizes(codes)
    if codes is None or codes.dtype is None or sizes is None or codes.dtype.bitwidth <= _BYTE_BITS:
        return None
    block = node.attributes.get_int("blocksize", 1)
    channels, rows, columns = sizes[0] // (block * block), sizes[1], sizes[2]
    joined = [0, channels, rows * block, columns * block]
    if node.attributes.get_string("mode", "DCR") == "DCR":
        split, perm = [0, block, block, channels, rows, columns], [0, 3, 4, 1, 5, 2]
    else:
        split, perm = [0, channels, block, block, rows, columns], [0, 1, 4, 2, 5, 3]
    return _shuffled(codes, split, perm, joined, node.outputs[0], build)


def block_sizes(value: ir.Value | None) -> list[int] | None:
    """Channels, rows and columns of an image; None where one is not known."""
    if value is None or value.shape is None:
        return None
    sizes = [size for size in list(value.shape)[1:] if isinstance(size, int)]
    return sizes if len(sizes) == 3 and 0 not in sizes else None


def _shuffled(
    codes: ir.Value,
    split: list[int],
    perm: list[int],
    joined: list[int],
    output: ir.Value,
    build: Builder,
) -> ir.Value:
    """``codes`` with axes split, transposed and joined again; 0 stands for the batch size."""
    assert codes.shape is not None
    dtype, batch = codes.dtype or ir.DataType.UINT8, codes.shape[0]

    def reshape(value: ir.Value, to: list[int]) -> ir.Value:
        shape = build.constant(np.array(to, np.int64), "shape")
        known = ir.Shape([batch, *to[1:]])
        return build.insert("Reshape", [value, shape], output, dtype, shape=known)

    blocks = reshape(codes, split)
    shape = ir.Shape([batch, *[split[axis] for axis in perm[1:]]])
    turned = build.insert(
        "Transpose", [blocks], output, dtype, attributes={"perm": perm}, shape=shape
    )
    return reshape(turned, joined)
