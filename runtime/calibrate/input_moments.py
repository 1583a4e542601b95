"""Measures second moments of what linear operators read, one feed in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.passes.linear import LINEAR_OPS, LinearOp
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.input_moments import InputMoments, LayerMoments
from onnxfold.passes.quantize.weight_rows import WeightRows
from onnxfold.runtime.calibrate.input_rows import InputRows
from onnxfold.runtime.calibrate.tapping import chosen_nodes, tapped
from onnxfold.runtime.progress import Progress

ROWS = 1024
"""Input vectors taken from a feed by default: enough for all feeds together."""

WIDEST = 4096
"""Inputs of an output beyond which only the diagonal is kept: 128 MiB of moments. With groups, what
all of them have may not take more than that either."""

_BITS = 18
"""Inputs become integers of at most so many bits: 2**27 of their products fit in int64."""
_EXPONENT_STEP = 4
_MOST_ROWS = 1 << (63 - 2 * _BITS)
_CHUNK = 1 << 13
"""Rows whose products are summed in float64 at once: below 2**53, whatever the order."""


def measure_input_moments(
    model: ir.Model,
    names: Collection[str] | None,
    feeds: Iterable[Mapping[str, Array]],
    *,
    quantized: ir.Model | None = None,
    rows: int = ROWS,
    progress: Progress | None = None,
) -> InputMoments:
    """Moments of the inputs of linear operators, for ``gptq`` and Hessian-weighted scales.

    Args:
        model: The float model that ``insert-qdq`` is given, whose weights are to be rounded; not
            changed.
        names: Nodes of its main graph with constant weights: Conv, Gemm or MatMul (others are left
            out). None means all.
        feeds: One array per input each. Read once.
        quantized: What ``insert-qdq`` made of ``model``: inputs are then taken as this graph sees
            them, behind quantized layers and through Q/DQ pairs. Not changed. Worse where weights
            have 4 bits: layers before are then far from what ``gptq`` will make of them.
        rows: Input vectors taken from each feed, evenly spaced; bounds the cost.
        progress: Hears one step per feed, in the stage the caller opened.

    Returns:
        Moments by node name (of ``quantized`` where it is given), the same bits whatever the
        number of threads.

    Raises:
        UsageError: There is no data, or ``model`` has no such node.
        InvalidModelError: A tensor became NaN or infinite.
        ExecutionError: ONNX Runtime failed.
    """
    layers = _layers(model, names)
    if quantized is not None:
        layers = _read_in(model, quantized, layers)
    if not layers:
        return InputMoments({})
    sums = {each.rows: _Sums() for each in layers}
    tensors = list(dict.fromkeys(each.data for each in sums))
    for sample, values in enumerate(tapped(quantized or model, tensors, feeds, progress)):
        for each, total in sums.items():
            try:
                total.update(each.take(values[each.data], rows))
            except ValueError as error:
                raise InvalidModelError(
                    f"tensor '{each.data}' has {error} on calibration sample {sample}; "
                    "check that sample, or leave it out"
                ) from None
    return InputMoments({each.name: sums[each.rows].of(each.weights) for each in layers})


@dataclass(frozen=True, eq=False)
class _Layer:
    name: str
    node: ir.Node
    weights: Array
    rows: InputRows


def _layers(model: ir.Model, names: Collection[str] | None) -> list[_Layer]:
    found = (_layer(name, node) for name, node in chosen_nodes(model, names).items())
    return [each for each in found if each is not None]


def _layer(name: str, node: ir.Node) -> _Layer | None:
    linear = LinearOp.match(node)
    if linear is None or linear.weight_index != 1:
        return None
    layout = WeightRows.match(node, linear.weight_shape)
    rows = None if layout is None else InputRows.of(node, layout)
    return None if rows is None else _Layer(name, node, linear.weights, rows)


def _read_in(model: ir.Model, quantized: ir.Model, layers: list[_Layer]) -> list[_Layer]:
    """The same layers as another graph has them, by its names and with what they read there."""
    counterparts = _counterparts(model, quantized)
    moved: list[_Layer] = []
    for each in layers:
        node = counterparts.get(each.node)
        layout = None if node is None else WeightRows.match(node, each.weights.shape)
        rows = None if node is None or layout is None else InputRows.of(node, layout)
        if node is not None and rows is not None and constant_array(node.inputs[0]) is None:
            moved.append(_Layer(node_name(node), node, each.weights, rows))
    return moved


def _counterparts(model: ir.Model, quantized: ir.Model) -> dict[ir.Node, ir.Node]:
    """Linear nodes in the same order, or else of the same names."""
    old, new = (
        [node for node in each.graph if node.op_type in LINEAR_OPS and not node.domain]
        for each in (model, quantized)
    )
    if [node.op_type for node in old] == [node.op_type for node in new]:
        # Quantizing renames what computes a graph output: only the order always stays.
        return dict(zip(old, new, strict=True))
    named = {(node_name(node), node.op_type): node for node in new}
    found = {node: named.get((node_name(node), node.op_type)) for node in old}
    return {node: each for node, each in found.items() if each is not None}


@dataclass
class _Sums:
    """Exact sums over input vectors; see ``LayerMoments``."""

    count: int = 0
    sums: dict[int, Array] = field(default_factory=dict[int, Array])
    products: dict[int, Array] = field(default_factory=dict[int, Array])

    def update(self, rows: Array) -> None:
        """Take in ``rows``, [groups, vectors, inputs].

        Raises:
            ValueError: A value is NaN or infinite.
            UsageError: There were too many for exact sums.
        """
        if not rows.size:
            return
        largest = float(np.abs(rows).max())
        if not np.isfinite(largest):
            raise ValueError("NaN or infinite values")
        self.count += rows.shape[1]
        if self.count > _MOST_ROWS:
            raise UsageError("input moments: too much data; take fewer samples, or rows of each")
        exponent = _exponent(largest)
        integers = np.rint(np.ldexp(rows.astype(np.float64), -exponent))
        self._add(self.sums, exponent, integers.sum(axis=1))
        for start in range(0, rows.shape[1], _CHUNK):
            part = integers[:, start : start + _CHUNK]
            if len(rows) * rows.shape[2] ** 2 > WIDEST**2:
                products = np.square(part).sum(axis=1)
            else:
                products = np.matmul(np.swapaxes(part, 1, 2), part)
            self._add(self.products, exponent, products)

    def of(self, weights: Array) -> LayerMoments:
        """What was summed, beside the weights."""
        return LayerMoments(weights, self.count, self.sums, self.products)

    @staticmethod
    def _add(totals: dict[int, Array], exponent: int, values: Array) -> None:
        whole = values.astype(np.int64)
        totals[exponent] = totals[exponent] + whole if exponent in totals else whole


def _exponent(largest: float) -> int:
    """The grid 2**e of values up to ``largest``; coarse steps keep the grids few."""
    if largest == 0.0:
        return 0
    top = int(np.frexp(largest)[1])
    return -(-top // _EXPONENT_STEP) * _EXPONENT_STEP - _BITS
