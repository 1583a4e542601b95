"""Weights in codes, as real numbers that a gradient can move, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS
from onnxfold.passes.constants import Array, constant_array

_WIDEST_BITS = 8
_MARGIN = 0.3
"""How far from its code a latent weight may start: nearer to 0.5 the first steps undo roundings
that were chosen with care."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Constant codes behind a DequantizeLinear with constant parameters.

    Attributes:
        node: The DequantizeLinear.
        codes: The codes, float32, of the shape in which they are stored.
        scale: float32, of the shape in which it is stored: one number, one a channel, or one a
            block.
        zero: The zero points, float32, of a shape that broadcasts to ``codes``.
        low: The smallest code to use. Whoever chose the codes may want those beyond free.
        high: The largest.
    """

    node: ir.Node
    codes: Array
    scale: Array
    zero: Array
    low: float
    high: float

    @classmethod
    def match(cls, node: ir.Node) -> QuantizedWeight | None:
        """Describe the weights that ``node`` dequantizes; None where it does anything else."""
        if node.op_type != "DequantizeLinear":
            return None
        stored, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
        if stored is None or scale is None or stored.ndim < 2 or not stored.size:
            return None
        if scale.dtype != np.float32:
            return None
        dtype = ir.DataType.from_numpy(stored.dtype)
        if dtype not in INTEGER_LIMITS or dtype.bitwidth > _WIDEST_BITS:
            return None
        given = node.inputs[2] if len(node.inputs) > 2 else None
        point = None if given is None else constant_array(given)
        if given is not None and point is None:
            return None
        zero = np.zeros(scale.shape) if point is None else point
        codes = stored.astype(np.float32)
        weight = cls(node, codes, scale.astype(np.float32), np.zeros(()), 0, 0)
        if not weight._fits(scale):
            return None
        low, high = _span(codes, zero, *INTEGER_LIMITS[dtype])
        wide = weight.spread(zero.astype(np.float32))
        return cls(node, codes, weight.scale, wide, low, high)

    def latent(self, wanted: Array | None) -> Array:
        """What rounds to the codes: as near to the weights that they were rounded from as may be.

        Args:
            wanted: The weights before they were rounded, of the shape of the codes, if known.
        """
        if wanted is None or wanted.shape != self.codes.shape:
            return np.array(self.codes)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            exact = np.nan_to_num(wanted / self.spread(self.scale)) + self.zero
        near = np.clip(exact, self.codes - _MARGIN, self.codes + _MARGIN)
        return near.astype(np.float32)

    def rounded(self, latent: Array) -> Array:
        """The codes that ``latent`` is rounded to, float32."""
        return np.clip(np.rint(latent), self.low, self.high)

    def real(self, latent: Array, scale: Array) -> Array:
        """The weights that ``latent`` stands for, float32."""
        weights: Array = (self.rounded(latent) - self.zero) * self.spread(scale)
        return weights

    def gradients(self, gradient: Array, latent: Array, scale: Array) -> tuple[Array, Array]:
        """The gradients of the latent codes, straight through, and of the scale.

        Args:
            gradient: Of the weights.
            latent: Where it was taken.
            scale: Likewise.
        """
        inside = (latent > self.low - 0.5) & (latent < self.high + 0.5)
        of_latent: Array = gradient * self.spread(scale) * inside
        return of_latent, self._gathered(gradient * (self.rounded(latent) - self.zero))

    def spread(self, parameter: Array) -> Array:
        """A parameter, one number a channel or block, in a shape that broadcasts to the codes."""
        if parameter.size == 1:
            return parameter.reshape(())
        if self._block:
            blocks = np.arange(self.codes.shape[self._axis], dtype=np.int64) // self._block
            wide: Array = np.take(parameter, blocks, axis=self._axis)
            return wide
        dims = [1] * self.codes.ndim
        dims[self._axis] = -1
        return parameter.reshape(dims)

    def _gathered(self, products: Array) -> Array:
        """The sum over what shares a scale, in the shape of the scale."""
        if self.scale.size == 1:
            return products.sum(dtype=np.float32).reshape(self.scale.shape)
        if self._block:
            starts = range(0, self.codes.shape[self._axis], self._block)
            sums: Array = np.add.reduceat(products, list(starts), axis=self._axis)
            return sums
        others = tuple(axis for axis in range(self.codes.ndim) if axis != self._axis)
        total: Array = products.sum(axis=others, dtype=np.float32)
        return total

    @property
    def fan_in(self) -> float:
        """The number of codes for each scale or, where there is one scale, each column."""
        if self.scale.size == 1 or self._block:
            return math.prod(self.codes.shape[1:])
        return self.codes.size / self.codes.shape[self._axis]

    @property
    def _axis(self) -> int:
        return self.node.attributes.get_int("axis", 1) % self.codes.ndim

    @property
    def _block(self) -> int:
        return self.node.attributes.get_int("block_size", 0)

    def _fits(self, scale: Array) -> bool:
        if scale.size == 1:
            return True
        axis = self.node.attributes.get_int("axis", 1)
        if not -self.codes.ndim <= axis < self.codes.ndim:
            return False
        size = self.codes.shape[self._axis]
        if not self._block:
            return scale.ndim == 1 and scale.size == size
        dims = list(self.codes.shape)
        dims[self._axis] = -(-size // self._block)
        return scale.shape == tuple(dims)


def _span(codes: Array, zero: Array, lowest: int, highest: int) -> tuple[float, float]:
    if zero.astype(np.float32).any():
        return float(codes.min()), float(codes.max())
    largest = float(np.abs(codes).max())
    return max(-largest, lowest), min(largest, highest)
