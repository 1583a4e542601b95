"""Weights as ONNX Runtime's MatMulNBits stores them: blocks of one column after another, packed."""

from __future__ import annotations

import numpy as np

from onnxfold.passes.constants import Array

SMALLEST_BLOCK = 16
LARGEST_PLAIN_BLOCK = 128
"""Rows to a block where the weights have one scale for all rows."""


def is_block_size(block: int) -> bool:
    """Whether the kernels take blocks of this size: powers of two from 16 on."""
    return block >= SMALLEST_BLOCK and not block & (block - 1)


def plain_block_size(depth: int) -> int:
    """The block size for ``depth`` rows of weights that share a scale."""
    block = SMALLEST_BLOCK
    while block < min(depth, LARGEST_PLAIN_BLOCK):
        block *= 2
    return block


def packed_weights(codes: Array, bits: int, block: int) -> Array:
    """Weights in blocks along the rows; the last block is filled up with zeros.

    Args:
        codes: uint8 [K, N], each below 2**bits.
        bits: 4 or 8.
        block: Rows of a block.

    Returns:
        uint8 [N, blocks, block * bits / 8].
    """
    depth, columns = codes.shape
    blocks = -(-depth // block)
    padded: Array = np.pad(codes, [(0, blocks * block - depth), (0, 0)])
    return np.ascontiguousarray(
        pack(np.moveaxis(padded, 1, 0).reshape(columns, blocks, block), bits)
    )


def packed_zero_points(zero_points: Array, bits: int) -> Array:
    """Zero points, uint8 [blocks, N], as the flat input that goes with ``packed_weights``."""
    return np.ascontiguousarray(pack(np.moveaxis(zero_points, 1, 0), bits).reshape(-1))


def pack(codes: Array, bits: int) -> Array:
    """Codes along the last axis as bytes; two 4-bit codes a byte, the first one below."""
    if bits == 8:
        return codes
    even: Array = np.pad(codes, [*[(0, 0)] * (codes.ndim - 1), (0, codes.shape[-1] % 2)])
    packed: Array = even[..., 0::2] | (even[..., 1::2] << 4)
    return packed
