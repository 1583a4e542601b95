"""The gradient of Einsum: one Einsum an operand, of the gradient and the other operands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.einsum import Equation
from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Einsum")
def einsum(call: Call, b: Builder) -> Gradients:
    """To each operand: what multiplies it, summed over the letters that it lacks."""
    equation = Equation.match(call.node)
    if equation is None:
        raise call.refusal("the ranks of its operands are not known")
    return [
        _operand_gradient(call, b, equation, index) if need else None
        for index, need in enumerate(call.needed)
    ]


def _operand_gradient(call: Call, b: Builder, equation: Equation, index: int) -> ir.Value:
    x, letters = call.x(index), equation.operands[index]
    others = [(i, term) for i, term in enumerate(equation.operands) if i != index]
    given = equation.output + "".join(term for _, term in others)
    # Each letter once: one that occurs twice reads a diagonal. Where only this operand has it, the
    # gradient is the same along its axis.
    distinct = "".join(dict.fromkeys(letters))
    found = "".join(letter for letter in distinct if letter in given)
    terms = ",".join([equation.output, *(term for _, term in others)])
    inputs = [call.gradient, *(call.x(i) for i, _ in others)]
    gradient = b.op("Einsum", *inputs, equation=f"{terms}->{found}")
    alone = [axis for axis, letter in enumerate(distinct) if letter not in given]
    gradient = b.unsqueeze(gradient, *alone)
    again = [axis for axis, letter in enumerate(letters) if letter in letters[:axis]]
    gradient = b.unsqueeze(gradient, *again)
    for axis in again:
        gradient = b.mul(gradient, _diagonal(x, letters.index(letters[axis]), axis, b))
    if alone:
        gradient = b.expand_like(gradient, x)
    # Dimensions of 1 are broadcast; only an ellipsis stands for dimensions that are not known.
    if "..." in call.string("equation", "") or (x.shape is not None and 1 in x.shape):
        return b.sum_to(gradient, x)
    b.assume_like(gradient, x)
    return gradient


def _diagonal(x: ir.Value, first: int, second: int, b: Builder) -> ir.Value:
    """Ones where two axes of ``x`` have one index, else zeros; 1 long along the other axes."""
    dtype = dtype_of(x)
    zero, one = (b.constant(np.array(each, np.int64)) for each in (0, 1))
    indices = b.op("Range", zero, b.op("Squeeze", b.dim(x, first)), one)
    rank = rank_of(x)
    rows = b.unsqueeze(indices, *(axis for axis in range(rank) if axis != first))
    columns = b.unsqueeze(indices, *(axis for axis in range(rank) if axis != second))
    return b.cast(b.op("Equal", rows, columns), dtype)
