"""What the activations behind a value are clipped to: by a Relu or a Clip, and by their codes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS
from onnxfold.passes.channel_affine import only_consumer
from onnxfold.passes.constants import constant_array

_ANY = (-math.inf, math.inf)


def activation_limits(value: ir.Value) -> tuple[float, float]:
    """The real numbers that ``value`` can still be told apart between.

    Follows single consumers through Relu and Clip as far as a QuantizeLinear with one scale, whose
    codes saturate.
    """
    low, high = _ANY
    while (node := only_consumer(value)) is not None and not node.domain:
        lower, upper = _limits(node)
        # In this order, as a chain of clips would compute it.
        low, high = (min(max(each, lower), upper) for each in (low, high))
        if node.op_type not in ("Relu", "Clip"):
            break
        value = node.outputs[0]
    return low, high


def _limits(node: ir.Node) -> tuple[float, float]:
    match node.op_type:
        case "Relu":
            return 0.0, math.inf
        case "Clip":
            return _bound(node, 1, -math.inf), _bound(node, 2, math.inf)
        case "QuantizeLinear":
            return _code_limits(node)
        case _:
            return _ANY


def _bound(node: ir.Node, index: int, absent: float) -> float:
    value = node.inputs[index] if len(node.inputs) > index else None
    array = constant_array(value)
    return absent if array is None or array.size != 1 else float(array.reshape(()))


def _code_limits(node: ir.Node) -> tuple[float, float]:
    scale = constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return _ANY
    limits = INTEGER_LIMITS.get(ir.DataType.from_numpy(zero.dtype))
    if limits is None:
        return _ANY
    low, high = (float(scale.reshape(())) * (code - float(zero.reshape(()))) for code in limits)
    return low, high
