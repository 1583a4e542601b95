"""Pass ``smooth-quant``: moves outliers of activations into the weights that read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.linear_fold import replace_constant, rounded, sinks
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.channel_maxima import ChannelMaxima
from onnxfold.passes.quantize.migration import Channels, division
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_SMALLEST = 1e-5
"""Of the largest: what less a channel reaches counts as if it were so much."""


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Divide the channels of an activation, and multiply the weights that read them.

    The codes of an activation share one scale, which a few channels of large values (of
    transformers, behind normalizations) leave coarse for all others; weights have scales of their
    own. So channel j is divided by s = max|x|^alpha / max|w|^(1 - alpha) before it is quantized,
    and the weights of all that reads it are multiplied by s (Xiao et al., "SmoothQuant: Accurate
    and Efficient Post-Training Quantization for Large Language Models", 2022, equation 4).

    The division costs nothing at run time: it goes into gamma and beta of a normalization, a
    product or sum with a constant, or the weights of a linear operator, also through Relu. Where
    there is none of these, or something else reads the activation, it stays as it is.

    Attributes:
        maxima: max|x| of input channels, from ``onnxfold.runtime.calibrate.channel_maxima``.
        alpha: How much of the outliers moves into the weights, 0 to 1.
    """

    maxima: ChannelMaxima
    alpha: float = 0.5

    name: ClassVar[str] = "smooth-quant"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Migrate what the linear operators of the main graph read, where maxima are known.

        Raises:
            UsageError: The maxima are those of another model, or alpha is out of range.
        """
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"smooth-quant: alpha is {self.alpha}, not between 0 and 1")
        groups = list(_shared_data(model.graph))
        names = {node_name(each.node) for _, readers in groups for each in readers}
        if self.maxima and names.isdisjoint(self.maxima):
            raise UsageError("smooth-quant: the model has none of the nodes of the maxima")
        for value, readers in groups:
            largest = self._largest(readers)
            if largest is not None:
                self._migrate(value, readers, largest, rewriter)

    def _largest(self, readers: Sequence[LinearOp]) -> Array | None:
        """max|x| of each channel of what ``readers`` read; None where that is not known."""
        known = [self.maxima.get(node_name(each.node)) for each in readers]
        vectors = [np.array(each) for each in known if each is not None]
        if not vectors:
            return None
        if any(len(each) != readers[0].in_channels for each in vectors):
            name = node_name(readers[0].node)
            raise UsageError(f"smooth-quant: the maxima of node '{name}' are another model's")
        return np.max(vectors, axis=0)

    def _migrate(
        self, value: ir.Value, readers: Sequence[LinearOp], largest: Array, rewriter: Rewriter
    ) -> None:
        first = readers[0]
        if use_count(value) != len(readers) or value.is_graph_output():
            rewriter.remark(first.node, "something else reads its data, which stays as it is")
            return
        factors = _factors(
            largest, np.max([_weights(each) for each in readers], axis=0), self.alpha
        )
        rank = _rank(first)
        axis = first.data_channel_axis
        if axis >= 0 and rank is not None:
            axis -= rank
        edits = division(value, Channels(axis, rank, factors)) if axis < 0 else None
        if edits is None:
            rewriter.remark(first.node, "nothing before it takes a factor a channel")
            return
        scaled = [each.scale_inputs(factors) for each in readers]
        pairs = list(zip(readers, scaled, strict=True))
        new = [(each, rounded(wide, each.dtype), sinks(wide, each.dtype)) for each, wide in pairs]
        if any(array is None or sunk for _, array, sunk in new):
            rewriter.remark(first.node, "its weights would not fit their type")
            return
        with rewriter.step("migrate-outliers", first.node):
            for linear, array, _ in new:
                assert array is not None
                rewriter.add_source(linear.node)
                replace_constant(rewriter, linear.node, linear.weight_index, array)
            for edit in edits:
                edit(rewriter)


def _shared_data(graph: ir.Graph) -> Iterator[tuple[ir.Value, list[LinearOp]]]:
    """Each value that linear operators read along the same axis, with these."""
    found: dict[tuple[ir.Value, int], list[LinearOp]] = {}
    for node in graph:
        linear = LinearOp.match(node)
        if linear is not None:
            found.setdefault((linear.data, linear.data_channel_axis), []).append(linear)
    yield from ((value, readers) for (value, _), readers in found.items())


def _factors(data: Array, weights: Array, alpha: float) -> Array:
    """What to multiply the weights of each channel by; 1 where there is nothing to move."""
    if not np.any(data) or not np.any(weights):
        return np.ones_like(data)
    x, w = (np.maximum(each, _SMALLEST * each.max()) for each in (data, weights))
    factors: Array = np.maximum(x**alpha / w ** (1 - alpha), _SMALLEST)
    return factors


def _weights(linear: LinearOp) -> Array:
    """max|w| of each input channel, over all groups."""
    magnitudes = np.abs(linear.weights.astype(np.float64))
    axes = tuple(i for i in range(magnitudes.ndim) if i != linear.input_axis)
    if linear.node.op_type != "Conv" or linear.groups == 1:
        return magnitudes.max(axis=axes, initial=0.0)
    grouped = magnitudes.reshape(linear.groups, -1, *linear.weight_shape[1:])
    axes = tuple(i for i in range(grouped.ndim) if i not in (0, 2))
    largest: Array = grouped.max(axis=axes, initial=0.0)
    return largest.reshape(-1)


def _rank(linear: LinearOp) -> int | None:
    if linear.node.op_type != "MatMul":
        return len(linear.weight_shape)
    return None if linear.data.shape is None else len(linear.data.shape)
