"""Writes Einsum of two operands as MatMul, with the Transpose and Reshape that it implies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_array
from onnxfold.passes.einsum import Equation, letter_sizes
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_AXES_ARE_INPUTS = 13
"""Since this opset Unsqueeze and Squeeze take their axes as an input."""


_HAS_PRODUCTS = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.INT32,
    ir.DataType.INT64,
)
"""What ONNX Runtime multiplies matrices of."""


@dataclass(frozen=True)
class _Product:
    """sum over k of left[b, m, k] right[b, k, n], each letter group any number of axes.

    Attributes:
        left: The first operand of the MatMul, with its letters.
        right: The second.
        batch: Letters of both operands and the result.
        rows: Letters of the first operand and the result.
        columns: Letters of the second operand and the result.
        summed: Letters of both operands only.
        output: The letters of the result, in order.
        sizes: What is known of the size of each letter.
    """

    left: tuple[ir.Value, str]
    right: tuple[ir.Value, str]
    batch: str
    rows: str
    columns: str
    summed: str
    output: str
    sizes: dict[str, int | str | None]

    @classmethod
    def match(cls, node: ir.Node) -> _Product | str:
        """Read an Einsum that is a product of matrices; else say why it is none."""
        equation = Equation.match(node)
        if equation is None or len(equation.operands) != 2:
            return "it has not two operands of known rank"
        first, second = node.inputs
        if first is None or first.dtype not in _HAS_PRODUCTS:
            return "there is no MatMul of its type, or the type is not known"
        (a, b), output = equation.operands, equation.output
        if second is None or any(len(set(t)) < len(t) for t in (a, b, output)):
            return "it takes a diagonal"
        if set(a + b) - set(output) - (set(a) & set(b)):
            return "it sums over an axis of one operand alone"
        sizes = letter_sizes(equation, node)
        summed = "".join(letter for letter in a if letter in b and letter not in output)
        if not summed:
            return "it sums over no axis"
        if any(sizes.get(letter) is None for letter in summed):
            return "the sizes it sums over are not known to be equal"
        # Constants come second, as weights do; else what the result ends with.
        swapped = constant_array(first) is not None and constant_array(second) is None
        if constant_array(second) is None and output:
            swapped = swapped or (output[-1] in a and output[-1] not in b)
        x, w = ((second, b), (first, a)) if swapped else ((first, a), (second, b))
        return cls(
            x,
            w,
            batch="".join(each for each in output if each in a and each in b),
            rows="".join(each for each in output if each in x[1] and each not in w[1]),
            columns="".join(each for each in output if each in w[1] and each not in x[1]),
            summed=summed,
            output=output,
            sizes=sizes,
        )

    def needs_reshape(self) -> bool:
        """Whether groups of axes must be made one for MatMul to see matrices."""
        many_rows = len(self.rows) > 1 and bool(self.batch)
        return many_rows or len(self.columns) > 1 or len(self.summed) > 1

    def is_slow(self) -> bool:
        """Whether a matrix on the left, or one that must be turned, is multiplied by a vector."""
        if self.batch or bool(self.rows) == bool(self.columns):
            return False
        return bool(self.rows) or self.right[1] != self.summed + self.columns

    def size(self, letters: str) -> int | None:
        """Product of the sizes of ``letters``; None where it is not known."""
        found = [self.sizes.get(letter) for letter in letters]
        known = [size for size in found if isinstance(size, int)]
        return math.prod(known) if len(known) == len(found) else None


@rule("einsum-to-matmul", "Einsum")
def _rewrite(node: ir.Node, rewriter: Rewriter) -> None:
    product = _Product.match(node)
    if isinstance(product, str):
        rewriter.remark(node, f"no MatMul: {product}")
        return
    if product.is_slow():
        rewriter.remark(node, "MatMul with a vector is slower than Einsum (measured)")
        return
    if not product.needs_reshape():
        rewriter.replace_node(node, [_by_axes(node, product, rewriter)])
        return
    targets = _targets(product)
    if targets is None:
        rewriter.remark(node, "axes of unknown size would have to be merged", "fix input shapes")
        return
    rewriter.replace_node(node, [_by_groups(node, product, targets, rewriter)])


@dataclass(frozen=True)
class EinsumToMatMul(PatternPass):
    """Write Einsum of two operands that sums over shared axes as MatMul.

    With the Transpose, Unsqueeze and Reshape it implies; constants become the second operand.
    Left alone: sums over one operand, diagonals, products without a sum, matrices times vectors,
    and groups of axes of unknown size that would have to be merged.
    """

    name: ClassVar[str] = "einsum-to-matmul"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """One rule."""
        return (_rewrite,)


def _by_axes(node: ir.Node, product: _Product, rewriter: Rewriter) -> ir.Value:
    """Where each group is one axis at most: rows may be several, as MatMul broadcasts."""
    write = _Writer(node, rewriter)
    left = write.transpose(product.left, product.batch + product.rows + product.summed)
    right = write.transpose(product.right, product.batch + product.summed + product.columns)
    if not product.rows:
        left = write.unsqueeze(left, -2)
    if not product.columns:
        right = write.unsqueeze(right, -1)
    result = write.matmul(left, right)
    if not product.columns:
        result = write.squeeze(result, -1)
    if not product.rows:
        result = write.squeeze(result, -2 if product.columns else -1)
    letters = product.batch + product.rows + product.columns
    return write.transpose((result, letters), product.output)


def _targets(product: _Product) -> tuple[list[int], list[int], list[int]] | None:
    """What both operands and the result are reshaped to; None where too little is known.

    Batch axes are copied; so are rows where there is no batch, as MatMul takes several.
    """
    merged = bool(product.batch) or not product.rows
    copied = [0] * len(product.batch if merged else product.rows)
    rows = [product.size(product.rows)] if merged else []
    summed, columns = product.size(product.summed), product.size(product.columns)
    singles = [product.size(letter) for letter in (product.rows if merged else "")]
    singles += [product.size(letter) for letter in product.columns]
    groups = ([*rows, summed], [summed, columns], singles)
    if any(0 in group or group.count(None) > 1 for group in groups):
        return None
    left, right, result = ([-1 if size is None else size for size in group] for group in groups)
    return [*copied, *left], [*[0] * len(product.batch), *right], [*copied, *result]


def _by_groups(
    node: ir.Node,
    product: _Product,
    targets: tuple[list[int], list[int], list[int]],
    rewriter: Rewriter,
) -> ir.Value:
    """Each group of axes as one."""
    write = _Writer(node, rewriter)
    left = write.transpose(product.left, product.batch + product.rows + product.summed)
    right = write.transpose(product.right, product.batch + product.summed + product.columns)
    result = write.matmul(write.reshape(left, targets[0]), write.reshape(right, targets[1]))
    result = write.reshape(result, targets[2])
    letters = product.batch + product.rows + product.columns
    return write.transpose((result, letters), product.output)


class _Writer:
    """Inserts the nodes of one product before ``node``."""

    def __init__(self, node: ir.Node, rewriter: Rewriter) -> None:
        self._node = node
        self._rewriter = rewriter
        self._dtype = node.outputs[0].dtype or (node.inputs[0].dtype if node.inputs[0] else None)

    def transpose(self, value: tuple[ir.Value, str], letters: str) -> ir.Value:
        source, given = value
        perm = [given.index(letter) for letter in letters]
        if perm == sorted(perm):
            return source
        return self._insert("Transpose", [source], {"perm": perm})

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        return self._with_axis("Unsqueeze", value, axis)

    def squeeze(self, value: ir.Value, axis: int) -> ir.Value:
        return self._with_axis("Squeeze", value, axis)

    def reshape(self, value: ir.Value, target: Sequence[int]) -> ir.Value:
        shape = self._constant(np.array(target, np.int64), "shape")
        return self._insert("Reshape", [value, shape])

    def matmul(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self._insert("MatMul", [left, right])

    def _with_axis(self, op_type: str, value: ir.Value, axis: int) -> ir.Value:
        if self._rewriter.opset(self._node) < _AXES_ARE_INPUTS:
            return self._insert(op_type, [value], {"axes": [axis]})
        return self._insert(op_type, [value, self._constant(np.array([axis]), "axis")])

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        return self._rewriter.constant(
            self._node, array, name=f"{self._node.outputs[0].name}_{name}"
        )

    def _insert(
        self,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, list[int]] | None = None,
    ) -> ir.Value:
        name = f"{self._node.outputs[0].name}_{op_type.lower()}"
        return self._rewriter.insert(
            self._node, op_type, inputs, name=name, attributes=attributes, dtype=self._dtype
        )
