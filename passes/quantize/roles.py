"""What quantization knows about each operator: its role, and which inputs are activations."""

from __future__ import annotations

import enum

import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.linear import LINEAR_OPS


class Role(enum.Enum):
    """How an operator takes part in a quantized region."""

    LINEAR = "linear"
    """Multiplies and accumulates: what quantization is for. Its output has a range of its own."""
    ARITHMETIC = "arithmetic"
    """Computes new values; quantized only between quantized neighbours."""
    TIED = "tied"
    """Moves or selects values: inputs and outputs share one scale and zero point."""
    CLAMP = "clamp"
    """Relu or Clip: merged into the operator before it where it can, else like arithmetic."""


ROLES: dict[str, Role] = {
    **dict.fromkeys(LINEAR_OPS, Role.LINEAR),
    **dict.fromkeys(("Add", "Mul", "AveragePool", "GlobalAveragePool"), Role.ARITHMETIC),
    **dict.fromkeys(("Clip", "Relu"), Role.CLAMP),
    **dict.fromkeys(
        (
            *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Pad"),
            *("Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"),
            *("Transpose", "Unsqueeze"),
        ),
        Role.TIED,
    ),
}
"""Every operator of ai.onnx that can be quantized."""

_TWO_OPERANDS = ("Add", "Mul", "Gemm", "MatMul")


def role_of(node: ir.Node) -> Role | None:
    """The role ``node`` can take, judged by itself; None where it stays in float."""
    if node.domain or node.op_type not in ROLES:
        return None
    role = ROLES[node.op_type]
    if not operand_indices(node):
        return None
    if role is Role.ARITHMETIC and _has_scalar_operand(node):
        return None
    if role is Role.TIED and not _keeps_type(node):
        return None
    if node.op_type == "Clip" and any(
        value is not None and constant_tensor(value) is None for value in node.inputs[1:]
    ):
        return None
    return role


def operand_indices(node: ir.Node) -> tuple[int, ...]:
    """Positions of the inputs that are activations: real-valued data that is not constant."""
    if node.op_type == "Concat":
        count = len(node.inputs)
    else:
        count = min(2 if node.op_type in _TWO_OPERANDS else 1, len(node.inputs))
    return tuple(
        index
        for index in range(count)
        if node.inputs[index] is not None and constant_tensor(node.inputs[index]) is None
    )


def constant_operand_indices(node: ir.Node) -> tuple[int, ...]:
    """Positions of the constant inputs of Add, Mul and Concat, which are quantized like data."""
    if node.op_type not in ("Add", "Mul", "Concat"):
        return ()
    activations = operand_indices(node)
    return tuple(index for index in range(len(node.inputs)) if index not in activations)


def _has_scalar_operand(node: ir.Node) -> bool:
    """Whether Add or Mul has a one-element constant: exact in float, and cheap to fold."""
    if node.op_type not in ("Add", "Mul"):
        return False
    tensors = [constant_tensor(value) for value in node.inputs]
    return any(tensor is not None and tensor.size <= 1 for tensor in tensors)


def _keeps_type(node: ir.Node) -> bool:
    """Whether a movement operator only moves: no interpolation, no second output of indices."""
    if node.op_type == "MaxPool":
        return all(not output.uses() for output in node.outputs[1:])
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    if node.op_type == "Pad":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return value is None or constant_tensor(value) is not None
    return True
