"""fold-constants: compute at compile time what does not depend on the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.evaluate import can_evaluate, evaluate
from onnxfold.passes.patterns import Rule, apply_rules
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_SMALL = 1024
"""Elements up to which an 8-bit constant turned into float is not taken for a packed weight."""
_UNKNOWN = -1


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are constant by their value, and Shape of known dimensions.

    Folded is only what has one exact result (``onnxfold.passes.kernels``): random operators,
    transcendental functions, float reductions and nodes with bodies are left, and so are results
    that hold a NaN or that are larger than allowed; the size is known before anything is made.
    8-bit weights that are turned into float stay packed.

    Attributes:
        max_bytes: Largest constant made.
        max_total_bytes: Largest sum of the constants made that the model keeps.
        fold_qdq: Also fold DequantizeLinear of constants, and float made of 8-bit weights.
        keep_float16: Leave constants stored in float16 that are cast to float32.
        only_integers: Leave all that reads or makes real numbers, which may be trained.
    """

    name: ClassVar[str] = "fold-constants"
    contract: ClassVar[Contract] = Contract.EXACT

    max_bytes: int = 16 * 2**20
    max_total_bytes: int = 256 * 2**20
    fold_qdq: bool = False
    keep_float16: bool = False
    only_integers: bool = False

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Fold until nothing changes."""
        folder = _Folder(self)
        apply_rules(
            rewriter,
            (
                Rule("fold-shape", ("Shape", "Size", "Gather", "Slice"), folder.fold_shape),
                Rule("fold-node", (), folder.fold_node),
            ),
        )


class _Folder:
    """The rules, and how many bytes they may still add."""

    def __init__(self, options: FoldConstants) -> None:
        self._options = options
        self._left = options.max_total_bytes
        self._made: set[ir.Value] = set()

    def fold_node(self, node: ir.Node, rewriter: Rewriter) -> None:
        """Compute a node whose inputs are all constant."""
        if not can_evaluate(node) or not node.inputs:
            return
        inputs = _constant_inputs(node)
        if inputs is None:
            return
        if not self._options.fold_qdq and _unpacks_weights(node, inputs):
            return
        if self._options.keep_float16 and _widens_half(node, inputs):
            return
        limit = min(self._options.max_bytes, self._left)
        outputs = evaluate(node, rewriter.opset(node), inputs, limit)
        if outputs is None or sum(array.nbytes for array in outputs) > self._left:
            return
        if self._options.only_integers and not all(map(_is_integer, (*inputs, *outputs))):
            return
        self._replace(node, outputs, rewriter)

    def fold_shape(self, node: ir.Node, rewriter: Rewriter) -> None:
        """Compute Shape and Size, and what is picked out of a shape, from known dimensions."""
        dims = _known_dims(node)
        if dims is not None and not np.any(dims == _UNKNOWN):
            self._replace(node, (dims,), rewriter)

    def _replace(self, node: ir.Node, outputs: tuple[Array, ...], rewriter: Rewriter) -> None:
        read = [value for value in node.inputs if value is not None]
        new_values: list[ir.Value | None] = []
        for old, array in zip(node.outputs, outputs, strict=True):
            if not use_count(old) and not old.is_graph_output():
                new_values.append(None)
                continue
            name = f"{old.name}_folded"
            if old.is_graph_output():
                # An initializer cannot take over an output's name; a Constant node can.
                new = _constant_node(node, array, name, rewriter)
            else:
                new = rewriter.constant(node, array, name=name)
                rewriter.swap_names(new, old)
            self._made.add(new)
            self._left -= array.nbytes
            new_values.append(new)
        rewriter.replace_node(node, new_values)
        self._drop_intermediates(read, rewriter)

    def _drop_intermediates(self, values: list[ir.Value], rewriter: Rewriter) -> None:
        for value in values:
            if value not in self._made or use_count(value) or value.is_graph_output():
                continue
            self._made.discard(value)
            self._left += 0 if value.const_value is None else value.const_value.nbytes
            producer = value.producer()
            if producer is not None:
                rewriter.erase(producer)
            else:
                rewriter.remove_initializer(value)


def _constant_inputs(node: ir.Node) -> list[Array | None] | None:
    """The arrays behind the inputs (None for an absent one), if all are constant."""
    arrays: list[Array | None] = []
    for value in node.inputs:
        array = constant_array(value)
        if value is not None and array is None:
            return None
        arrays.append(array)
    return arrays


def _is_integer(array: Array | None) -> bool:
    return array is None or array.dtype.kind in "iub"


def _constant_node(anchor: ir.Node, array: Array, name: str, rewriter: Rewriter) -> ir.Value:
    tensor = ir.Tensor(array)
    return rewriter.insert(
        anchor,
        "Constant",
        [],
        name=name,
        attributes={"value": tensor},
        dtype=tensor.dtype,
        shape=array.shape,
    )


def _unpacks_weights(node: ir.Node, inputs: list[Array | None]) -> bool:
    """Whether ``node`` makes floats of a weight that is stored in 8 bits or less."""
    if node.op_type == "DequantizeLinear":
        return True
    if node.op_type != "Cast" or inputs[0] is None:
        return False
    to = ir.DataType(node.attributes["to"].as_int())
    packed = inputs[0].dtype.itemsize == 1 and inputs[0].size >= _SMALL
    return packed and to.is_floating_point()


def _widens_half(node: ir.Node, inputs: list[Array | None]) -> bool:
    """Whether ``node`` casts float16 to float32."""
    if node.op_type != "Cast" or inputs[0] is None or inputs[0].dtype != np.float16:
        return False
    return node.attributes["to"].as_int() == ir.DataType.FLOAT


def _known_dims(node: ir.Node) -> Array | None:
    """What ``node`` makes of a shape, with _UNKNOWN where a dimension is not static."""
    if node.domain:
        return None
    match node.op_type:
        case "Shape":
            return _shape_dims(node)
        case "Size":
            dims = _dims_of(node.inputs[0])
            if dims is None or np.any(dims == _UNKNOWN):
                return None
            return np.array(dims.prod(), dtype=np.int64)
        case _:
            return _picked_dims(node)


def _shape_dims(node: ir.Node) -> Array | None:
    dims = _dims_of(node.inputs[0])
    bounds = [node.attributes.get(name) for name in ("start", "end")]
    if dims is None or any(bound is not None and bound.is_ref() for bound in bounds):
        return None
    start, end = (None if bound is None else bound.as_int() for bound in bounds)
    return dims[start:end]


def _dims_of(value: ir.Value | None) -> Array | None:
    # What a model declares for its outputs is a claim that ONNX Runtime does not enforce.
    if value is None or value.shape is None or value.is_graph_output():
        return None
    dims = [dim if isinstance(dim, int) else _UNKNOWN for dim in value.shape]
    return np.array(dims, dtype=np.int64)


def _picked_dims(node: ir.Node) -> Array | None:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is None or producer.op_type != "Shape" or producer.domain:
        return None
    dims = _shape_dims(producer)
    picks = [constant_array(value) for value in node.inputs[1:]]
    if dims is None or not can_evaluate(node) or _has_unknown(node, picks):
        return None
    # Neither operator computes with what it moves, so the mark of the unknown survives.
    outputs = evaluate(node, 0, [dims, *picks], dims.nbytes * 64)
    return None if outputs is None else outputs[0]


def _has_unknown(node: ir.Node, arrays: list[Array | None]) -> bool:
    pairs = zip(node.inputs[1:], arrays, strict=True)
    return any(value is not None and array is None for value, array in pairs)
