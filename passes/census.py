"""What a model consists of: operators by kind, multiply-accumulates, the integer share, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import onnx_ir as ir

from onnxfold.passes.macs import integer_macs, is_linear, node_macs
from onnxfold.passes.op_kinds import (
    NodeKinds,
    OpKind,
    is_dequantize,
    is_integer_kernel,
    is_quantize,
    node_kinds,
    op_key,
)
from onnxfold.passes.walk import all_graphs, all_nodes, use_count

_MOVING = frozenset({"Cast", "Identity", "Reshape", "Sub", "Transpose"})
"""What may stand between integer weights and the multiplication by their scale."""


class ModelKind(Enum):
    """How far a model is on the way to integers."""

    FLOAT = "float"
    WEIGHT_ONLY = "weight-only quantized"
    FAKE_QUANTIZED = "fake-quantized"
    DYNAMIC = "dynamically quantized"
    INTEGER = "integer"
    MIXED = "part integer, part float"


@dataclass(frozen=True)
class Census:
    """A count of what is in a model, bodies and local functions included.

    Attributes:
        ops: How often each operator occurs (``domain::Op`` outside ai.onnx).
        kinds: How many nodes there are of each kind (``OpKind``).
        macs: Multiply-accumulates of one run in linear operators; a symbolic dimension counts 1.
        integer_macs: Those of them done on integers.
        qdq_macs: Those of them in float operators whose data a DequantizeLinear gives: in Q/DQ
            form, the runtime decides.
        unknown_macs: Linear operators whose shapes are not known, which ``macs`` leaves out.
        parameters: Elements of all initializers and Constant nodes' tensors.
        parameter_bytes: Their bytes.
        parameters_by_type: Elements and bytes of each element type, the largest first.
    """

    ops: dict[str, int]
    kinds: dict[str, int]
    macs: int
    integer_macs: int
    qdq_macs: int
    unknown_macs: int
    parameters: int
    parameter_bytes: int
    parameters_by_type: dict[str, dict[str, int]]

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates done on integers, 0 to 1."""
        return self.integer_macs / self.macs if self.macs else 0.0

    @property
    def qdq_share(self) -> float:
        """Share of the multiply-accumulates in Q/DQ form, 0 to 1."""
        return self.qdq_macs / self.macs if self.macs else 0.0

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {**asdict(self), "integer_share": self.integer_share}


def take_census(model: ir.Model) -> Census:
    """Count what is in ``model``; run ``infer-shapes`` before, or most MACs are unknown."""
    sorted_nodes = node_kinds(model)
    linear = [node for node in sorted_nodes.kinds if is_linear(node)]
    counts = {node: node_macs(node) for node in linear}
    in_qdq_form = [each for each in linear if _reads_dequantized(each, sorted_nodes)]
    kinds = Counter(sorted_nodes.kinds.values())
    ops = Counter(map(op_key, sorted_nodes.kinds))
    elements, bytes_ = _parameters(model)
    return Census(
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        kinds={kind.value: kinds[kind] for kind in OpKind if kinds[kind]},
        macs=sum(count or 0 for count in counts.values()),
        integer_macs=sum(map(integer_macs, linear)),
        qdq_macs=sum(counts[node] or 0 for node in in_qdq_form),
        unknown_macs=sum(count is None for count in counts.values()),
        parameters=elements.total(),
        parameter_bytes=bytes_.total(),
        parameters_by_type={
            name: {"elements": elements[name], "bytes": size}
            for name, size in sorted(bytes_.items(), key=lambda item: (-item[1], item[0]))
        },
    )


def model_kind(model: ir.Model) -> ModelKind:
    """How far ``model`` is on the way to integers."""
    found = node_kinds(model)
    kinds = set(found.kinds.values())
    activations = [
        node
        for node, kind in found.kinds.items()
        if kind in (OpKind.QUANTIZE, OpKind.DEQUANTIZE) and node.inputs[0] not in found.known
    ]
    if any(node.op_type.startswith("Dynamic") for node in found.kinds):
        return ModelKind.DYNAMIC
    linear = [node for node in found.kinds if is_linear(node)]
    integer = [node for node in linear if integer_macs(node) or found.kinds[node] is OpKind.INTEGER]
    if integer or any(op_key(node).startswith(_QLINEAR) for node in found.kinds):
        return ModelKind.INTEGER if len(integer) == len(linear) else ModelKind.MIXED
    if activations:
        return ModelKind.FAKE_QUANTIZED
    stored = OpKind.DEQUANTIZE in kinds or any(integer_weights(model))
    packed = any(node.op_type in _PACKED for node in found.kinds)
    return ModelKind.WEIGHT_ONLY if stored or packed else ModelKind.FLOAT


def has_codes(model: ir.Model) -> bool:
    """Whether there is anything to fold: a QuantizeLinear, DequantizeLinear or integer kernel."""
    return any(
        is_quantize(node) or is_dequantize(node) or is_integer_kernel(node)
        for node in all_nodes(model)
    )


def integer_weights(model: ir.Model) -> Iterator[str]:
    """Names of 8-bit weights that Cast and Mul turn into real numbers, without a DequantizeLinear.

    Some exporters write DequantizeLinear so; nothing else says that they are quantized.
    """
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.dtype in _NARROW and _is_scaled(value):
                yield value.name or ""


_NARROW = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})
_PACKED = frozenset({"GatherBlockQuantized", "MatMulBnb4", "MatMulNBits"})
_QLINEAR = ("QLinear", "com.microsoft::QLinear")


def _is_scaled(value: ir.Value) -> bool:
    """Whether a Mul follows, behind a Cast and what may stand between them."""
    cast = False
    while use_count(value) == 1:
        node = next(iter(value.uses())).node
        if node.op_type == "Mul" and not node.domain:
            return cast
        if node.op_type not in _MOVING or node.domain:
            return False
        cast = cast or node.op_type == "Cast"
        value = node.outputs[0]
    return False


def _reads_dequantized(node: ir.Node, found: NodeKinds) -> bool:
    """Whether all data of a float operator comes out of DequantizeLinear, some of it computed."""
    if found.kinds[node] is not OpKind.FLOAT:
        return False
    producers = [each.producer() for each in node.inputs[:2] if each is not None]
    if any(each is None or found.kinds.get(each) is not OpKind.DEQUANTIZE for each in producers):
        return False
    return any(each is not None and each.inputs[0] not in found.known for each in producers)


def _parameters(model: ir.Model) -> tuple[Counter[str], Counter[str]]:
    """Elements and bytes by element type."""
    elements: Counter[str] = Counter()
    bytes_: Counter[str] = Counter()
    for tensor in _tensors(model):
        name = tensor.dtype.name.lower()
        elements[name] += tensor.size
        bytes_[name] += tensor.nbytes
    return elements, bytes_


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in all_nodes(model):
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()
