"""Which initializers of a model are weights that can be trained, and which are constants."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.op_kinds import op_key
from onnxfold.passes.walk import all_nodes

_WEIGHT_INPUTS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({1, 2}),
    "Conv": frozenset({1, 2}),
    "ConvTranspose": frozenset({1, 2}),
    "GRU": frozenset({1, 2, 3}),
    "Gather": frozenset({0}),
    "Gemm": frozenset({0, 1, 2}),
    "GroupNormalization": frozenset({1, 2}),
    "InstanceNormalization": frozenset({1, 2}),
    "LSTM": frozenset({1, 2, 3, 7}),
    "LayerNormalization": frozenset({1, 2}),
    "MatMul": frozenset({0, 1}),
    "PRelu": frozenset({1}),
    "RMSNormalization": frozenset({1}),
    "RNN": frozenset({1, 2, 3}),
    "SimplifiedLayerNormalization": frozenset({1}),
    "com.microsoft::BiasGelu": frozenset({1}),
    "com.microsoft::FastGelu": frozenset({1}),
    "com.microsoft::FusedConv": frozenset({1, 2}),
    "com.microsoft::FusedGemm": frozenset({0, 1, 2}),
    "com.microsoft::FusedMatMul": frozenset({0, 1}),
    "com.microsoft::SkipLayerNormalization": frozenset({2, 3, 4}),
    "com.microsoft::SkipSimplifiedLayerNormalization": frozenset({2, 3}),
}
"""Where operators read what was trained; running statistics are not."""

_SCALED_BY = frozenset({"Add", "Mul", "Sub", "Div"})
_PASSED_ON_BY = frozenset(
    {
        "DequantizeLinear",
        "Expand",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def trainable_weights(model: ir.Model) -> list[ir.Value]:
    """The real initializers of the main graph that operators read as weights or biases, in order.

    Vectors and larger that something is multiplied with or added to count too; single numbers
    (epsilons, temperatures, scales) only where an operator's weight is expected.
    """
    read = _weights_read(model)
    return [value for value in model.graph.initializers.values() if value in read]


def _weights_read(model: ir.Model) -> set[ir.Value]:
    found: set[ir.Value] = set()
    for node in all_nodes(model):
        kind = op_key(node)
        slots = _WEIGHT_INPUTS.get(kind, frozenset())
        for index, value in enumerate(node.inputs):
            source = _behind_movement(value)
            if source is None or not _is_real(source):
                continue
            if index in slots or (kind in _SCALED_BY and _size(source) > 1):
                found.add(source)
    return found


def _behind_movement(value: ir.Value | None) -> ir.Value | None:
    """The initializer that ``value`` is, moved or not; None where it is computed."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in _PASSED_ON_BY:
            return None
        value = producer.inputs[0]
    return value


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.size)
