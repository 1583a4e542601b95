"""Products of what a Reshape flattened, and into what one unfolds: their weights are permuted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.layouts.carry import Carry, Handler, Known, NewConstant
from onnxfold.passes.layouts.columns import (
    columns_in_order,
    keeps_order,
    permuted_operand,
    product_form,
)
from onnxfold.passes.layouts.permutation import Permutation, identity
from onnxfold.passes.layouts.reshapes import EXACT as BLOCKS
from onnxfold.passes.layouts.reshapes import Dim, blocks_of, dims_around, target_of
from onnxfold.passes.walk import use_count


def _flatten(node: ir.Node, known: Known) -> Carry | None:
    """A Reshape that joins permuted axes into the last one, which products with constants add up.

    Those constants are permuted instead; likewise those of a product whose last axis a Reshape
    splits. Other Reshapes are carried as ever.
    """
    plain = BLOCKS["Reshape"](node, known) if node.op_type == "Reshape" else None
    dims = dims_around(node)
    if plain is not None or dims is None or (known.index and not known.is_output):
        return plain
    before, after = dims
    if known.is_output:
        return _unfold(node, known, before, after)
    blocks = blocks_of(before, after)
    if blocks is None or not blocks[-1].after or len(known.layout) != len(before):
        return None
    order = _order_of([before[axis] for axis in blocks[-1].before], known.layout)
    if len(blocks[-1].after) != 1 or order is None:
        return None
    changed = _reordered_weights(node.outputs[0], order)
    if not changed:
        return None
    outputs = (identity(len(after)),)
    return Carry({0: known.layout}, outputs, {}, {}, tuple(changed))


def _unfold(
    node: ir.Node, known: Known, before: Sequence[Dim], after: Sequence[Dim]
) -> Carry | None:
    """A Reshape that splits the last axis, which a product with constants makes."""
    blocks, source = blocks_of(before, after), node.inputs[0]
    if blocks is None or len(blocks[-1].before) != 1 or len(known.layout) != len(after):
        return None
    order = _order_of([after[axis] for axis in blocks[-1].after], known.layout)
    target = target_of([after[axis] for axis in known.layout], before)
    if order is None or target is None or source is None:
        return None
    changed = columns_in_order(source, order)
    if not changed:
        return None
    shape = {1: np.array(target, dtype=np.int64)}
    return Carry({}, (known.layout,), {"allowzero": None}, shape, tuple(changed))


def _order_of(sizes: Sequence[Dim], layout: Permutation) -> Array | None:
    """Where the elements of the last axes, joined, come from when these alone are permuted."""
    head = len(layout) - len(sizes)
    numbers = [dim for dim in sizes if isinstance(dim, int)]
    if len(numbers) != len(sizes) or layout[:head] != identity(head):
        return None
    places = np.arange(math.prod(numbers), dtype=np.int64).reshape(numbers)
    return np.transpose(places, [axis - head for axis in layout[head:]]).reshape(-1)


def _reordered_weights(value: ir.Value, order: Array) -> list[NewConstant]:
    """The weights of the products that read ``value``; none where one reader is something else."""
    if value.is_graph_output() or not use_count(value):
        return []
    changed: list[NewConstant] = []
    for use in value.uses():
        found = _at_reader(use.node, use.idx, value, order)
        if not found:
            return []
        changed += found
    return changed


def _at_reader(node: ir.Node, index: int, value: ir.Value, order: Array) -> list[NewConstant]:
    producer = value.producer()
    if producer is None or node.graph is not producer.graph or index != 0:
        return []
    if node.op_type in ("MatMul", "Gemm") and not node.domain:
        return _weights(node, order)
    if not keeps_order(node):
        return []
    return _reordered_weights(node.outputs[0], order)


def _weights(node: ir.Node, order: Array) -> list[NewConstant]:
    """The weights of a product with their inner axis in ``order``."""
    form = product_form(node)
    if form is None or form.turned:
        return []
    return permuted_operand(node, 1, 1 if form.across else 0, order)


ROUNDING_WITH_WEIGHTS: dict[str, Handler] = {"Reshape": _flatten, "Flatten": _flatten}
"""What is added up is added up in another order."""
