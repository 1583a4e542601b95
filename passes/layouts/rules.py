"""The rules of the passes that move transposes, over a table of what carries layouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Pass
from onnxfold.passes.constants import constant_array
from onnxfold.passes.layouts.carry import Carry, Handler, Known
from onnxfold.passes.layouts.materialize import materialize, pick_sizes
from onnxfold.passes.layouts.operators import OLDEST_OPSET, carry
from onnxfold.passes.layouts.permutation import inverse, permutation_of
from onnxfold.passes.layouts.region import cheapest_moves, cost_around
from onnxfold.passes.layouts.roots import is_constant, transpose_of
from onnxfold.passes.patterns import Rule, apply_rules, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = ("Add", "Clip", "Div", "LeakyRelu", "Mul", "PRelu", "Relu", "Sub")
"""What other passes and runtimes make one operator with a linear one."""


@rule("transpose-constant", "Transpose")
def transpose_constant(node: ir.Node, rewriter: Rewriter) -> None:
    """Transpose of a constant: another constant."""
    source, output = node.inputs[0], node.outputs[0]
    array, perm = constant_array(source), permutation_of(node)
    if source is None or array is None or perm is None or output.is_graph_output():
        return
    turned = rewriter.constant(node, np.transpose(array, perm), name=f"{output.name}_folded")
    rewriter.replace_node(node, [turned])


@rule("shape-of-transpose", "Transpose")
def shape_of_transpose(node: ir.Node, rewriter: Rewriter) -> None:
    """Transpose of which only the shape is read: what is read is picked out of the shape before."""
    source, output, perm = node.inputs[0], node.outputs[0], permutation_of(node)
    readers = [use.node for use in output.uses()]
    if source is None or perm is None or not readers or output.is_graph_output():
        return
    if any(each.op_type != "Shape" or each.domain or _is_open(each) for each in readers):
        return
    for reader in dict.fromkeys(readers):
        pick_sizes(rewriter, reader, source, np.array(perm, dtype=np.int64))
    rewriter.erase(node)


@dataclass(frozen=True)
class TransposeMover(Pass):
    """A pass that moves transposes past the operators of a table."""

    def handlers(self) -> dict[str, Handler]:
        """The table; subclasses return theirs."""
        raise NotImplementedError

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Move transposes until nothing gets cheaper."""
        move = Rule("move-transposes", ("Transpose",), self._move)
        ahead = Rule("operator-before-transpose", _FUSED, self._move_ahead)
        rules = (transpose_constant, shape_of_transpose, move, ahead)
        applied = -1
        # What moved at one place may make a move at another worth while.
        while applied != rewriter.rules.total() and not rewriter.refused:
            applied = rewriter.rules.total()
            apply_rules(rewriter, rules)

    def _move(self, node: ir.Node, rewriter: Rewriter) -> None:
        if rewriter.opset(node) < OLDEST_OPSET or not use_count(node.outputs[0]):
            return
        moves = cheapest_moves(node, self.handlers())
        if moves:
            materialize(moves, rewriter)

    def _move_ahead(self, node: ir.Node, rewriter: Rewriter) -> None:
        """What follows a linear operator behind a Transpose: ahead of it, where they may be one."""
        if rewriter.opset(node) < OLDEST_OPSET or node.domain:
            return
        for index, value in enumerate(node.inputs):
            transpose = value.producer() if value is not None else None
            if value is None or transpose is None or not transpose_of(transpose):
                continue
            perm, root = permutation_of(transpose), transpose.inputs[0]
            if perm is None or root is None or not _is_linear(root) or use_count(value) != 1:
                continue
            change = carry(node, Known(inverse(perm), index), self.handlers())
            if change is None or list(change.inputs) != [index] or not _fits(change, root):
                continue
            moves = {node: change}
            if cost_around(moves, moves) <= cost_around(moves, {}):
                materialize(moves, rewriter)
                return


def _is_open(node: ir.Node) -> bool:
    return any(attribute.is_ref() for attribute in node.attributes.values())


def _fits(change: Carry, root: ir.Value) -> bool:
    """Whether constants are broadcast to ``root``, and not the other way round."""
    dims = [] if root.shape is None else list(root.shape)
    return all(
        len(array.shape) <= len(dims)
        and all(size in (1, dim) for size, dim in zip(array.shape[::-1], dims[::-1], strict=False))
        for array in change.constants.values()
    )


def _is_linear(value: ir.Value) -> bool:
    """Whether a linear operator makes ``value``, or what may be fused with one does."""
    node = value.producer()
    while node is not None and not node.domain and use_count(node.outputs[0]) == 1:
        if node.op_type in _LINEAR:
            return True
        computed = [each for each in node.inputs if each is not None and not is_constant(each)]
        if node.op_type not in _FUSED or len(computed) != 1:
            return False
        node = computed[0].producer()
    return False
