"""Elements of less than a byte (int4, uint2, float4, ...) packed as ONNX packs them."""

from __future__ import annotations

import numpy as np

from onnxfold.runtime.specs import Array


def pack(array: Array, bits: int) -> Array:
    """Pack elements of ``bits`` bits, kept one a byte, low bits first.

    Returns:
        uint8, one dimension, ceil(elements * bits / 8) long.
    """
    per_byte = 8 // bits
    codes = array.reshape(-1).view(np.uint8) & np.uint8((1 << bits) - 1)
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: Array = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed


def unpack(data: Array, bits: int, count: int) -> Array:
    """The inverse of ``pack``: ``count`` codes, one a byte, as uint8 without sign extension."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    codes: Array = (data[:, np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
    return np.array(codes.reshape(-1)[:count])
