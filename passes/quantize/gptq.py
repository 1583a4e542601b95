"""Pass ``gptq``: rounds weights anew, so that what they make of data changes least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear_fold import replace_constant
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.input_moments import InputMoments, LayerMoments
from onnxfold.passes.quantize.rounding import Grid, damped, descend, nearest_plane, quadratic_error
from onnxfold.passes.quantize.weight_codes import WeightCodes
from onnxfold.passes.rewriter import Rewriter

_LARGEST_ACTIVATION = 255
_LARGEST_SUM = 2.0**30
"""Half of int32, as in ``insert-qdq``: the other half is for the bias."""


@dataclass(frozen=True)
class Gptq(Pass):
    """Choose the codes of weights together, by what rounding them does to the output.

    Rounding each weight to the nearest code leaves the least error in weights, not in outputs:
    inputs go together, so the error of one weight can be made good by its neighbours. With the
    second moments H of the inputs, codes q are chosen for the least (w - q)^T H (w - q): first one
    input after another (GPTQ: Frantar et al., 2022), then by changing single codes until none
    gains. An output channel that this would not improve keeps the codes it has.

    It runs behind ``insert-qdq``. Scales, zero points and biases stay as they are, and
    ``correct-bias``, which takes out the mean error that is left, comes after it.

    Attributes:
        moments: Moments of inputs, from ``onnxfold.runtime.calibrate.input_moments``, measured
            with the very weights that were quantized.
        damping: Share of the mean moment added to each, beside the number of inputs over that of
            the vectors seen: with few of these, moments of different inputs are mostly chance.
        sweeps: How often all single codes of a layer are tried, at most.
        centered: Leave the mean error out: worse, unless ``correct-bias`` follows and takes it out.
    """

    moments: InputMoments
    damping: float = 0.001
    sweeps: int = 20
    centered: bool = False

    name: ClassVar[str] = "gptq"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Round the weights of the main graph's linear operators that the moments name.

        Raises:
            UsageError: The moments are those of another model, or an option is out of range.
        """
        if not self.damping > 0 or self.sweeps < 0:
            raise UsageError("gptq: damping must be above 0 and sweeps not below")
        named = [node for node in model.graph if node_name(node) in self.moments]
        if self.moments and not named:
            raise UsageError("gptq: the model has none of the nodes of the moments")
        done: set[ir.Node] = set()
        for node in named:
            found = WeightCodes.match(node)
            if found is None or found.dequantize in done:
                continue
            done.add(found.dequantize)
            self._round(node, found, rewriter)

    def _round(self, node: ir.Node, found: WeightCodes, rewriter: Rewriter) -> None:
        layers = self._layers(found)
        weights = layers[0].weights if layers else None
        if weights is None or weights.shape != found.stored.shape:
            rewriter.remark(node, "its weights are read by what was not measured with them")
            return
        if not all(each.full for each in layers):
            # One by one, inputs are rounded best to the nearest code.
            rewriter.remark(node, "it has so many inputs that only their own moments are known")
            return
        rows = found.rows.to_rows(weights.astype(np.float64))
        count = sum(each.count for each in layers)
        hessian = _hessian(layers, self.centered)
        firm = damped(hessian, self.damping + rows.shape[2] / max(count, 1))
        codes = self._codes(rows, found, hessian, firm)
        if np.array_equal(codes, found.codes):
            return
        with rewriter.step("round-weights", node):
            replace_constant(rewriter, found.dequantize, 0, found.store(codes))

    def _layers(self, found: WeightCodes) -> Sequence[LayerMoments]:
        """The moments of all that reads the weights; none where some are not known."""
        value = found.dequantize.outputs[0]
        layers: list[LayerMoments] = []
        for node, index in value.uses():
            layer = self.moments.get(node_name(node))
            other = WeightCodes.match(node)
            same = other is not None and index == 1 and other.rows == found.rows
            if layer is None or not same or node.graph is not found.dequantize.graph:
                return ()
            layers.append(layer)
        same = all(np.array_equal(each.weights, layers[0].weights) for each in layers)
        return layers if same and not value.is_graph_output() else ()

    def _codes(self, rows: Array, found: WeightCodes, hessian: Array, firm: Array) -> Array:
        """Codes chosen by ``firm``, by ``hessian`` in no row worse than those that are there."""
        grid, best = found.grid, found.codes
        most = np.maximum(_sums(found.codes, grid), _LARGEST_SUM / _LARGEST_ACTIVATION)
        start = nearest_plane(rows, grid, firm)
        for _ in range(2):
            codes = descend(rows, start, grid, firm, self.sweeps)
            before, after = (
                quadratic_error(grid.reals(each) - rows, hessian) for each in (best, codes)
            )
            better = (after < before) & (_sums(codes, grid) <= most)
            best = np.where(better[:, :, np.newaxis], codes, best)
            if np.all(better):
                break
            # Rows that began too far away begin anew from the codes that they have.
            start = best
        return best


def _sums(codes: Array, grid: Grid) -> Array:
    """What a row can accumulate, in codes of largest activations."""
    sums: Array = np.abs(codes - grid.zero).sum(axis=2)
    return sums


def _hessian(layers: Sequence[LayerMoments], centered: bool) -> Array:
    """The sum over all that read the weights, float64 [groups, inputs, inputs]."""
    total = layers[0].second
    for layer in layers[1:]:
        total = total + layer.second
    if centered:
        for layer in layers:
            total = total - np.einsum("gi,gj->gij", layer.mean, layer.mean)
    return total
