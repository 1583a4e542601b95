"""Ops that move, select or copy elements: they do the same to codes, whose order is the reals'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_scalar
from onnxfold.passes.fold.lowering import (
    Alias,
    Concat,
    Lowering,
    Move,
    Operand,
    Refusal,
    Scatter,
)
from onnxfold.passes.fold.rules.operands import joined_operands, reads, reals
from onnxfold.passes.fold.rules.refusals import not_quantized, touches_quantization
from onnxfold.passes.fold.targets.block_moves import channels_of
from onnxfold.passes.fold.types import Quantized, TypeState, is_wide
from onnxfold.passes.walk import use_count


def move(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The op on codes; its other inputs (shapes, indices) stay as they are."""
    if not touches_quantization(node, types):
        return None
    data = node.inputs[0]
    known = types.get(data)
    if data is None or known is None:
        return not_quantized(data, types)
    if not types.takes(known.type):
        return Refusal("it moves per-channel or wide codes", "quantize per tensor to 8 bits")
    for output in node.outputs:
        types.put(output, Quantized(known.type))
    return Move(node=node, reads=(data,), plain=_others(node), covered=(node,))


def identity(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Identity: the same codes."""
    known = types.get(node.inputs[0])
    data = node.inputs[0]
    if known is None or data is None:
        return None
    types.put(node.outputs[0], known)
    types.follow_accumulator(data, node.outputs[0])
    return None if known.codes is not None else Alias(node=node, reads=(data,), covered=(node,))


def pad(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Padding with the code of the padding value: the zero point where it is 0."""
    data = node.inputs[0]
    affine = types.activation(data)
    if affine is None or data is None:
        return not_quantized(data, types) if touches_quantization(node, types) else None
    if "pads" in node.attributes:
        return Refusal("Pad before opset 11 has no integer form", "upgrade the opset")
    value = node.inputs[2] if len(node.inputs) > 2 else None
    constants: dict[int, Array] = {}
    if node.attributes.get_string("mode", "constant") != "constant":
        # A padding value that nothing reads must still have the type of the codes.
        constants |= {} if value is None else {2: affine.zero_point}
    else:
        number = 0.0 if value is None else constant_scalar(value)
        if number is None:
            return Refusal("its padding value is computed at run time")
        real = np.asarray(number, np.float32)
        code = affine.quantize(real)
        rounded = types.want(node.outputs[0]) is affine
        if not rounded and affine.dequantize(code) != real:
            return Refusal(f"its padding value {number} is not a code of '{data.name}'")
        constants[2] = code
    types.put(node.outputs[0], Quantized(affine))
    plain = tuple(v for i, v in enumerate(node.inputs) if v is not None and i not in (0, 2))
    return Move(node=node, reads=(data,), plain=plain, covered=(node,), constants=constants)


def concat(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Concatenation; operands of other types are requantized, float constants quantized."""
    joined = _joined(node, node.inputs, types)
    if not isinstance(joined, tuple):
        return joined
    operands, affine = joined
    types.put(node.outputs[0], Quantized(affine))
    return Concat(
        node=node,
        reads=reads(*operands),
        plain=reals(*operands),
        covered=(node,),
        operands=operands,
        type=affine,
    )


def scatter(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Updates put into data, or compared with it; both as codes of one type."""
    reduction = node.attributes.get_string("reduction", "none")
    if reduction not in ("none", "max", "min"):
        reason = f"no integer kernel scatters with reduction {reduction}"
        return Refusal(reason) if touches_quantization(node, types) else None
    data, indices, updates = node.inputs
    joined = _joined(node, (data, updates), types)
    if not isinstance(joined, tuple) or indices is None:
        return None if isinstance(joined, tuple) else joined
    operands, affine = joined
    types.put(node.outputs[0], Quantized(affine))
    return Scatter(
        node=node,
        reads=reads(*operands),
        plain=(*reals(*operands), indices),
        covered=(node,),
        operands=operands,
        type=affine,
    )


def _joined(
    node: ir.Node, values: Sequence[ir.Value | None], types: TypeState
) -> tuple[tuple[Operand, ...], AffineType] | Refusal | None:
    """Operands and their common type; constants of another type are requantized here."""
    if not touches_quantization(node, types):
        return None
    output = node.outputs[0]
    joined = joined_operands(values, output, types)
    if isinstance(joined, ir.Value):
        return not_quantized(joined, types)
    if joined is None:
        return Refusal(
            "its operands have different scales and its output is not quantized",
            f"quantize '{output.name}', or all operands alike",
        )
    operands, affine = joined
    if not reads(*operands):
        return Refusal("none of its operands has codes")
    return tuple(_constant_in_type(each, affine) for each in operands), affine


def _constant_in_type(operand: Operand, affine: AffineType) -> Operand:
    if operand.codes is None or operand.type is affine:
        return operand
    return Operand(affine, codes=affine.quantize(operand.type.dequantize(operand.codes)))


def _others(node: ir.Node) -> tuple[ir.Value, ...]:
    return tuple(value for value in node.inputs[1:] if value is not None)


def cast(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Cast and CastLike to the type the numbers have: the same codes."""
    if not touches_quantization(node, types):
        return None
    wanted = ir.DataType(node.attributes.get_int("to", 0))
    if node.op_type == "CastLike":
        like = node.inputs[1]
        wanted = None if like is None else like.dtype
    if wanted != ir.DataType.FLOAT:
        return Refusal("codes do not stand for the type of number it casts to")
    return identity(node, types)


def dropout(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Dropout at inference: the same codes."""
    if not touches_quantization(node, types):
        return None
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and constant_scalar(training) is not False:
        return Refusal("it may drop elements: 'training_mode' is not constant false")
    if any(use_count(mask) or mask.is_graph_output() for mask in node.outputs[1:]):
        return Refusal("its mask is read", "remove the second output")
    return identity(node, types)


def move_blocks(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """DepthToSpace and SpaceToDepth; of 16 bits they have no kernel: moves of known channels."""
    affine = types.activation(node.inputs[0])
    if affine is not None and is_wide(affine) and channels_of(node.inputs[0]) is None:
        return Refusal("its number of channels is not known", "infer shapes first")
    return move(node, types)


RULES = {
    "Cast": cast,
    "CastLike": cast,
    "CenterCropPad": move,
    "Compress": move,
    "Concat": concat,
    "DepthToSpace": move_blocks,
    "Dropout": dropout,
    "Expand": move,
    "Flatten": move,
    "Gather": move,
    "GatherElements": move,
    "GatherND": move,
    "Identity": identity,
    "Pad": pad,
    "ReduceMax": move,
    "ReduceMin": move,
    "Reshape": move,
    "ReverseSequence": move,
    "ScatterElements": scatter,
    "ScatterND": scatter,
    "Slice": move,
    "SpaceToDepth": move_blocks,
    "Split": move,
    "Squeeze": move,
    "Tile": move,
    "Transpose": move,
    "Trilu": move,
    "Unsqueeze": move,
}
"""Rules by op type; CenterCropPad and Trilu fill with the zero point (see ``write_move``)."""

ON_CODES = frozenset(
    name for name, each in RULES.items() if each in (move, move_blocks, identity)
) - {
    "CenterCropPad",
    "Trilu",
}
"""The ops that mean the same whatever the codes stand for."""
