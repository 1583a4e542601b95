"""The vectors that the weights of a linear operator are multiplied by, out of its data tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from onnxfold.passes.constants import Array
from onnxfold.passes.quantize.weight_rows import WeightRows


@dataclass(frozen=True)
class InputRows:
    """Where the vectors lie in a data tensor; equal for operators that read the same ones.

    Attributes:
        data: Name of the tensor.
        groups: Groups of its channels.
        transposed: Whether vectors are its columns (Gemm with transA).
        kernel: Spatial shape of the kernel; empty for Gemm and MatMul, and all that follows.
        strides: Per spatial axis.
        dilations: Per spatial axis.
        pads: Zeros before each spatial axis, then behind each.
        auto_pad: ``NOTSET``, or how pads follow from the data's shape.
    """

    data: str
    groups: int = 1
    transposed: bool = False
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    @classmethod
    def of(cls, node: ir.Node, weights: WeightRows) -> InputRows | None:
        """The vectors of ``node``, Conv, Gemm or MatMul; None where its data has no name."""
        value, attributes = node.inputs[0], node.attributes
        if value is None or not value.name:
            return None
        if node.op_type != "Conv":
            transposed = node.op_type == "Gemm" and bool(attributes.get_int("transA", 0))
            return cls(value.name, transposed=transposed)
        kernel = weights.stored[2:]
        ones, zeros = (1,) * len(kernel), (0,) * (2 * len(kernel))
        return cls(
            value.name,
            groups=weights.groups,
            kernel=kernel,
            strides=tuple(attributes.get_ints("strides", ones)),
            dilations=tuple(attributes.get_ints("dilations", ones)),
            pads=tuple(attributes.get_ints("pads", zeros)),
            auto_pad=attributes.get_string("auto_pad", "NOTSET"),
        )

    def take(self, data: Array, most: int) -> Array:
        """At most ``most`` vectors, evenly spaced over samples and positions.

        Args:
            data: The tensor.
            most: Limit on the number of vectors.

        Returns:
            [groups, vectors, inputs], in the order of ``WeightRows``.
        """
        if self.kernel:
            return self._patches(data, most)
        matrix: Array = np.swapaxes(data, 0, 1) if self.transposed else data
        matrix = matrix.reshape(-1, matrix.shape[-1])
        return matrix[_spread(len(matrix), most)][np.newaxis]

    def _patches(self, data: Array, most: int) -> Array:
        windows = self._windows(data)
        batch, channels, *places = windows.shape[: 2 + len(self.kernel)]
        chosen = _spread(batch * math.prod(places), most)
        sample, *position = np.unravel_index(chosen, (batch, *places))
        patches: Array = np.moveaxis(windows, 1, len(self.kernel) + 1)[(sample, *position)]
        rows = patches.reshape(len(chosen), self.groups, channels // self.groups * self._taps)
        return np.swapaxes(rows, 0, 1)

    @property
    def _taps(self) -> int:
        return math.prod(self.kernel)

    def _windows(self, data: Array) -> Array:
        """A view [batch, channels, places..., taps...] of the padded data."""
        rank = len(self.kernel)
        extents = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        pads = self._pads(data.shape[2:], extents)
        padded = np.pad(data, [(0, 0), (0, 0), *pads])
        windows = sliding_window_view(padded, extents, axis=tuple(range(2, 2 + rank)))
        steps = [slice(None, None, each) for each in (*self.strides, *self.dilations)]
        view: Array = windows[(slice(None), slice(None), *steps)]
        return view

    def _pads(self, shape: tuple[int, ...], extents: list[int]) -> list[tuple[int, int]]:
        rank = len(shape)
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        if self.auto_pad == "NOTSET":
            return [(self.pads[axis], self.pads[axis + rank]) for axis in range(rank)]
        pads: list[tuple[int, int]] = []
        for size, extent, stride in zip(shape, extents, self.strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            small = total // 2
            large = total - small
            pads.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return pads


def _spread(count: int, most: int) -> Array:
    """At most ``most`` of ``count`` indices, evenly spaced."""
    if count <= most:
        return np.arange(count)
    spread: Array = np.arange(most) * count // most
    return spread
