"""Products of what a Reshape flattened: their constant weights take the order of the elements."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.layouts.carry import Carry, Handler, Known, NewConstant
from onnxfold.passes.layouts.elementwise import EXACT, ROUNDING
from onnxfold.passes.layouts.permutation import identity
from onnxfold.passes.layouts.reshapes import EXACT as BLOCKS
from onnxfold.passes.layouts.reshapes import blocks_of, dims_around
from onnxfold.passes.op_kinds import is_dequantize, is_quantize
from onnxfold.passes.shapes import static_shape
from onnxfold.passes.walk import use_count


def _flatten(node: ir.Node, known: Known) -> Carry | None:
    """A Reshape that joins permuted axes into the last one, which products with constants add up.

    Those constants are permuted instead. Other Reshapes are carried as ever.
    """
    plain = BLOCKS["Reshape"](node, known) if node.op_type == "Reshape" else None
    dims = dims_around(node)
    if plain is not None or known.is_output or known.index or dims is None:
        return plain
    before, after = dims
    blocks = blocks_of(before, after)
    if blocks is None or not blocks[-1].after or len(known.layout) != len(before):
        return None
    joined = blocks[-1].before
    head = identity(len(before) - len(joined))
    sizes = [before[axis] for axis in joined]
    if len(blocks[-1].after) != 1 or known.layout[: len(head)] != head:
        return None
    numbers = [dim for dim in sizes if isinstance(dim, int)]
    if len(numbers) != len(sizes):
        return None
    places = np.arange(int(np.prod(numbers)), dtype=np.int64).reshape(numbers)
    inner = [axis - len(head) for axis in known.layout[len(head) :]]
    order = np.transpose(places, inner).reshape(-1)
    changed = _reordered_weights(node.outputs[0], order)
    if not changed:
        return None
    outputs = (identity(len(after)),)
    return Carry({0: known.layout}, outputs, {}, {}, tuple(changed))


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
        weights = _weights(node, order)
        return [weights] if weights is not None else []
    if not _keeps_order(node):
        return []
    return _reordered_weights(node.outputs[0], order)


def _keeps_order(node: ir.Node) -> bool:
    """Whether each element of the only operand that is not one number becomes one element."""
    if is_quantize(node) or is_dequantize(node):
        return static_shape(node.inputs[1]) in ((), (1,)) and "block_size" not in node.attributes
    if node.domain or node.op_type not in EXACT | ROUNDING or len(node.outputs) != 1:
        return False
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") or "Norm" in node.op_type:
        return False
    others = [constant_array(each) for each in node.inputs[1:] if each is not None]
    return all(each is not None and each.size == 1 for each in others)


def _weights(node: ir.Node, order: Array) -> NewConstant | None:
    """The weights of a product with their inner axis in ``order``."""
    options = {name: node.attributes.get(name) for name in ("transA", "transB")}
    if any(each is not None and each.is_ref() for each in options.values()):
        return None
    turned, across = (each is not None and each.as_int() != 0 for each in options.values())
    weights = node.inputs[1]
    axis = 1 if across else 0
    holder, index = node, 1
    dequantize = weights.producer() if weights is not None else None
    if dequantize is not None and is_dequantize(dequantize):
        if use_count(dequantize.outputs[0]) != 1 or not _scales_spare(dequantize, axis):
            return None
        holder, index, weights = dequantize, 0, dequantize.inputs[0]
    array = constant_array(weights)
    if turned or array is None or array.ndim != 2 or array.shape[axis] != order.size:
        return None
    return NewConstant(holder, index, np.take(array, order, axis))


def _scales_spare(dequantize: ir.Node, axis: int) -> bool:
    """Whether all weights along ``axis`` have the same scale."""
    scale = static_shape(dequantize.inputs[1])
    given = dequantize.attributes.get("axis")
    if scale is None or (given is not None and given.is_ref()):
        return False
    if scale in ((), (1,)):
        return True
    along = (1 if given is None else given.as_int()) % 2
    return len(scale) == 1 and along != axis and "block_size" not in dequantize.attributes


ROUNDING_WITH_WEIGHTS: dict[str, Handler] = {"Reshape": _flatten, "Flatten": _flatten}
"""What is added up is added up in another order."""
