"""Pass ``equalize``: evens out the ranges of channels between neighbouring linear operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.channel_affine import BiasedLinear
from onnxfold.passes.constants import Array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.linear_fold import refold, replace_constant, rounded, sinks
from onnxfold.passes.quantize.channel_paths import ChannelPath, Obstacle, channel_paths
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs

_SWEEPS = 100
_TOLERANCE = 1e-3
"""Relative; a pair whose factors are all nearer to 1 is at its fixed point."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale channels between two linear operators so that both have the same range in each.

    Cross-layer equalization (Nagel et al., "Data-Free Quantization through Weight Equalization
    and Bias Correction", 2019, section 4.1): with r1 = max|w| of an output channel of the first
    operator and r2 = max|w| of what the second reads it with, the channel is divided by
    s = sqrt(r1 r2) / r2 in the first and multiplied by s in the second. Every pair in turn, until
    nothing changes. What it is for: int8 weights with one scale per tensor, and activations,
    whose channels always share one.

    It reaches through Relu, LeakyRelu, PRelu, pooling and zero padding. No bias is made
    larger than all biases and weights of its layer: its channel would outgrow the others. Left
    alone: operators whose output several nodes read, and Clip with a limit other than 0
    (Relu6). Run ``fold-batch-norm`` first.
    """

    name: ClassVar[str] = "equalize"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Equalize every graph."""
        for graph in list(all_graphs(model)):
            paths: list[ChannelPath] = []
            for found in channel_paths(graph):
                if isinstance(found, Obstacle):
                    rewriter.remark(found.node, found.reason, found.advice)
                else:
                    paths.append(found)
            for chain in _chains(paths):
                _equalize(chain, rewriter)


class _Layer:
    """A linear operator whose weights and bias are being scaled, in float64."""

    def __init__(self, linear: LinearOp) -> None:
        biased = BiasedLinear.around(linear)
        self.linear = linear
        self.bias = None if biased is None else biased.bias
        self.changed = False
        self._biased = biased
        self._bias_changed = False
        first, *rest = linear.weight_shape
        # Groups as an axis of their own, in front: channels count over all of them.
        self._weights = linear.weights.astype(np.float64).reshape(
            linear.groups, first // linear.groups, *rest
        )

    @property
    def weights(self) -> Array:
        """As stored."""
        return self._weights.reshape(self.linear.weight_shape)

    def largest(self, axis: int) -> Array:
        """max|w| of each channel along an axis of the stored weights."""
        others = tuple(i for i in range(self._weights.ndim) if i not in (0, axis + 1))
        largest: Array = np.abs(self._weights).max(axis=others, initial=0.0).reshape(-1)
        return largest

    def scale_outputs(self, divisors: Array) -> None:
        """Divide the output channels."""
        self._scale(self.linear.output_axis, 1.0 / divisors)
        if self.bias is not None and np.any(self.bias):
            self.bias, self._bias_changed = self.bias / divisors, True

    def scale_inputs(self, factors: Array) -> None:
        """Multiply the weights of the input channels."""
        self._scale(self.linear.input_axis, factors)

    def write(self, rewriter: Rewriter) -> None:
        """Give the operator its new weights and, where it changed, its bias."""
        rewriter.add_source(self.linear.node)
        if self._biased is not None and self.bias is not None and self._bias_changed:
            refold(rewriter, self._biased, self.weights, self.bias)
            return
        weights = rounded(self.weights, self.linear.dtype)
        assert weights is not None
        replace_constant(rewriter, self.linear.node, self.linear.weight_index, weights)

    def _scale(self, axis: int, factors: Array) -> None:
        shape = [self.linear.groups] + [1] * (self._weights.ndim - 1)
        shape[axis + 1] = -1
        self._weights *= factors.reshape(shape)
        self.changed = True


def _chains(paths: Sequence[ChannelPath]) -> Iterator[list[_Layer]]:
    """Operators in a row, each with a path to the next: no path ends where another does."""
    following = {each.first.linear.node: each.second for each in paths}
    reached = {each.second.node for each in paths}
    for path in paths:
        if path.first.linear.node in reached:
            continue
        chain = [_Layer(path.first.linear)]
        while (linear := following.get(chain[-1].linear.node)) is not None:
            chain.append(_Layer(linear))
        yield chain


def _equalize(chain: Sequence[_Layer], rewriter: Rewriter) -> None:
    for _ in range(_SWEEPS):
        moved = [_balance(*pair) for pair in pairwise(chain)]
        if not any(moved):
            break
    changed = [layer for layer in chain if layer.changed]
    for layer in changed:
        dtype = layer.linear.dtype
        arrays = [each for each in (layer.weights, layer.bias) if each is not None]
        if any(rounded(each, dtype) is None or sinks(each, dtype) for each in arrays):
            reason = f"its weights are not finite, or would not be in {dtype.name.lower()}"
            rewriter.remark(layer.linear.node, reason)
            return
    if changed:
        with rewriter.step("equalize-channels", changed[0].linear.node):
            for layer in changed:
                layer.write(rewriter)


def _balance(first: _Layer, second: _Layer) -> bool:
    """Give each channel between the two the same range on both sides; False where it has."""
    r1 = first.largest(first.linear.output_axis)
    r2 = second.largest(second.linear.input_axis)
    alive = (r1 > 0) & (r2 > 0) & np.isfinite(r1 + r2)
    factors = np.ones_like(r1)
    factors[alive] = np.sqrt(r1[alive] * r2[alive]) / r2[alive]
    bias = first.bias
    if bias is not None and np.any(bias):
        magnitudes = np.abs(bias)
        largest = max(magnitudes.max(), r1.max())
        factors = np.maximum(factors, np.minimum(magnitudes / largest, 1.0))
    if np.all(np.abs(np.log(factors)) < _TOLERANCE):
        return False
    first.scale_outputs(factors)
    second.scale_inputs(factors)
    return True
