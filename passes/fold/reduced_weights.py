"""Weights rounded to fewer codes at a larger scale, so that products of pairs fit into int16."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.fold.types import Quantized
from onnxfold.passes.pair_saturation import SAFE_MAGNITUDE, can_saturate, summing_order

_CANDIDATES = 17


class WrittenWeights:
    """The weights of one op, in the layout it reads, and what rounding them to fewer codes costs.

    Attributes:
        node: The op.
        written: Their codes and type.
        data: Smallest and largest code of the data.
        axis: Their output channels.
    """

    def __init__(self, node: ir.Node, written: Quantized, data: tuple[int, int]) -> None:
        assert written.codes is not None
        self.node = node
        self.written = written
        self.data = data
        by_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
        self.axis = 0 if by_rows else written.codes.ndim - 1
        self._centred = written.codes.astype(np.int64) - self._spread(written.type.zero_point)

    def summed(self, codes: Array) -> Array:
        """Codes in the order of the kernels, [channels, K]; batches of products one by one."""
        if self.node.op_type == "Conv":
            return summing_order(codes, axis=0)
        return summing_order(np.swapaxes(codes, 0, 1) if self.axis == 0 else codes, axis=-1)

    def saturating(self, codes: Array) -> Array:
        """Which channels can saturate; a channel stands for its column in all batches.

        An odd number of input channels may get one more, of weight 0, for the sake of speed: other
        neighbours meet then, so both orders count.
        """
        channels = self._centred.shape[self.axis]
        orders = [codes]
        if self.node.op_type == "Conv" and codes.shape[1] % 2:
            padding = [(0, int(axis == 1)) for axis in range(codes.ndim)]
            orders.append(np.pad(codes, padding))
        found = [can_saturate(self.summed(each), *self.data) for each in orders]
        saturates: Array = np.logical_or.reduce(found).reshape(-1, channels)
        return np.max(saturates, axis=0)

    def beyond(self, magnitude: int) -> Array:
        """Which channels have larger codes."""
        return np.greater(self._largest(self._centred), magnitude)

    def factors(self, chosen: Array, magnitude: int) -> Array:
        """By what the codes of each channel are divided; 1 where they stay.

        The least loss among some factors that do: rounding is finest at the smallest, and exact
        at a power of two if all codes are multiples of it.
        """
        largest = np.maximum(self._largest(self._centred), 1)
        if self.written.type.per_tensor:
            largest = np.full_like(largest, np.max(largest))
            chosen = np.ones_like(chosen)
        lowest = np.maximum(largest / magnitude, 1.0)
        highest = np.exp2(
            np.ceil(np.log2(np.maximum(largest / min(magnitude, SAFE_MAGNITUDE), 1.0)))
        )
        best, least = highest, np.full(lowest.shape, np.inf)
        for share in np.linspace(0.0, 1.0, _CANDIDATES):
            factors: Array = lowest + share * (highest - lowest)
            noise = self._noise(factors)
            better = self._fits(self.divided(factors), magnitude) & (noise < least)
            best, least = np.where(better, factors, best), np.where(better, noise, least)
        return np.where(chosen, best, 1.0)

    def divided(self, factors: Array) -> Array:
        """The codes, centred, divided and rounded to even."""
        return np.rint(self._centred / self._spread(factors)).astype(np.int64)

    def signal_to_noise(self, factors: Array) -> float:
        """SQNR of the divided weights against the written ones, in dB."""
        noise = float(np.sum(self._errors(factors)))
        signal = float(np.sum((self._centred * self._spread(self._scales())) ** 2))
        return 10 * math.log10(signal / noise) if noise else math.inf

    def _fits(self, codes: Array, magnitude: int) -> Array:
        fits = self._largest(codes) <= magnitude
        if magnitude > SAFE_MAGNITUDE:
            fits &= ~self.saturating(codes)
        return np.full_like(fits, fits.all()) if self.written.type.per_tensor else fits

    def _noise(self, factors: Array) -> Array:
        errors = self._by_channel(self._errors(factors)).sum(axis=1)
        return np.full_like(errors, errors.sum()) if self.written.type.per_tensor else errors

    def _errors(self, factors: Array) -> Array:
        spread = self._spread(factors)
        errors = self._centred - self.divided(factors) * spread
        return (errors * self._spread(self._scales())) ** 2

    def _scales(self) -> Array:
        return self.written.type.scale.astype(np.float64)

    def _largest(self, codes: Array) -> Array:
        return self._by_channel(np.abs(codes)).max(axis=1, initial=0)

    def _by_channel(self, array: Array) -> Array:
        return np.moveaxis(array, self.axis, 0).reshape(array.shape[self.axis], -1)

    def _spread(self, parameters: Array) -> Array:
        """One number a channel (or one for all), shaped to broadcast."""
        wide = parameters.astype(np.float64 if parameters.dtype.kind == "f" else np.int64)
        if wide.size == 1:
            return wide.reshape(())
        assert self.written.codes is not None
        return wide.reshape([-1 if i == self.axis else 1 for i in range(self.written.codes.ndim)])
