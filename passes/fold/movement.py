"""Data movement on codes, written the same way for all integer targets."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.fold.builder import Builder
from onnxfold.passes.fold.lowering import Move


def write_move(move: Move, build: Builder) -> Sequence[ir.Value]:
    """The op itself, on codes.

    Returns:
        For each output its codes, or the output itself where it is no code (an index).
    """
    node = move.node
    known = build.types.get(move.reads[0])
    assert known is not None
    inputs: list[ir.Value | None] = list(node.inputs)
    for position in move.positions:
        value = inputs[position]
        assert value is not None
        inputs[position] = build.codes_of(value)
    for position, array in move.constants.items():
        inputs += [None] * (position + 1 - len(inputs))
        inputs[position] = build.constant(array, f"{node.outputs[0].name}_fill")
    inserted = build.rewriter.insert_node(
        build.anchor,
        node.op_type,
        inputs,
        name=f"{node.outputs[0].name}_codes",
        attributes=node.attributes,
        outputs=len(node.outputs),
    )
    for old, new in zip(node.outputs, inserted.outputs, strict=True):
        coded = build.types.get(old) is not None
        dtype = known.type.dtype if coded else old.dtype
        if dtype is not None:
            build.rewriter.set_type(new, dtype, old.shape)
    return inserted.outputs
