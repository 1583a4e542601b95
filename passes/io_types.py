"""Inputs and outputs that are no float32 any more: how that is recorded, and undone to compare."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array

KEY = "onnxfold.io"
"""Key in the model's metadata: a JSON object by name of input or output."""


@dataclass(frozen=True)
class IoType:
    """What the elements of an input or output stand for: real = scale * (element - zero_point).

    Attributes:
        dtype: Their type: integers, or float16.
        scale: 1 for float16.
        zero_point: 0 for float16.
    """

    dtype: ir.DataType
    scale: float = 1.0
    zero_point: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether elements are codes."""
        return self.dtype != ir.DataType.FLOAT16

    def __str__(self) -> str:
        """``uint8, real = 0.01 * (q - 128)``."""
        name = self.dtype.name.lower()
        if not self.is_integer:
            return name
        return f"{name}, real = {np.float32(self.scale)!s} * (q - {self.zero_point})"


def read_io_types(model: ir.Model) -> dict[str, IoType]:
    """The inputs and outputs of ``model`` that passes have given another type, by name."""
    text = model.metadata_props.get(KEY)
    found: dict[str, dict[str, Any]] = json.loads(text) if text else {}
    return {
        name: IoType(ir.DataType[each["type"]], each.get("scale", 1.0), each.get("zero_point", 0))
        for name, each in found.items()
    }


def io_types_text(types: Mapping[str, IoType]) -> str:
    """What ``read_io_types`` reads; scales with the digits that give the float32 back."""
    return json.dumps(
        {
            name: {"type": each.dtype.name}
            | ({"scale": each.scale, "zero_point": each.zero_point} if each.is_integer else {})
            for name, each in sorted(types.items())
        },
        ensure_ascii=False,
    )


def float_edges(model: ir.Model) -> frozenset[str]:
    """The names of the float32 inputs and outputs."""
    values = (*model.graph.inputs, *model.graph.outputs)
    return frozenset(value.name or "" for value in values if value.dtype == ir.DataType.FLOAT)


def with_float_io(model: ir.Model, names: Collection[str]) -> ir.Model:
    """``model`` with recorded inputs and outputs in float32 again, to compare it.

    Args:
        model: Not modified: a copy is, where there is something to undo.
        names: The inputs and outputs that are float32 in what it is compared with.
    """
    types = {name: each for name, each in read_io_types(model).items() if name in names}
    if not types:
        return model
    model = model.clone()
    graph = model.graph
    for index, value in enumerate(list(graph.inputs)):
        if value.name in types and value.dtype == types[value.name].dtype:
            graph.inputs[index] = _float_input(graph, value, types[value.name])
    for index, value in enumerate(list(graph.outputs)):
        if value.name in types and value.dtype == types[value.name].dtype:
            graph.outputs[index] = _float_output(graph, value, types[value.name])
    return model


def _float_input(graph: ir.Graph, value: ir.Value, kind: IoType) -> ir.Value:
    real = ir.Value(name=value.name, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
    node = _edge(graph, real, kind, "QuantizeLinear", kind.dtype)
    codes = node.outputs[0]
    codes.name = f"{value.name}_onnxfold_edge"
    codes.type, codes.shape = value.type, value.shape
    value.name = f"{value.name}_onnxfold_input"
    for reader, index in tuple(value.uses()):
        reader.replace_input_with(index, codes)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = codes
    first = next(iter(graph), None)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)
    return real


def _float_output(graph: ir.Graph, value: ir.Value, kind: IoType) -> ir.Value:
    node = _edge(graph, value, kind, "DequantizeLinear", ir.DataType.FLOAT)
    real = node.outputs[0]
    real.name, value.name = value.name, f"{value.name}_onnxfold_output"
    real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.append(node)
    return real


def _edge(
    graph: ir.Graph, source: ir.Value, kind: IoType, op_type: str, to: ir.DataType
) -> ir.Node:
    """A Cast, or a QuantizeLinear or DequantizeLinear with its constants."""
    if not kind.is_integer:
        return ir.node("Cast", [source], {"to": int(to)})
    arrays: dict[str, Array] = {
        "scale": np.asarray(kind.scale, np.float32),
        "zero": np.asarray(kind.zero_point, kind.dtype.numpy()),
    }
    parameters: list[ir.Value] = []
    for key, array in arrays.items():
        value = ir.Value(
            name=f"{source.name}_onnxfold_{op_type}_{key}",
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(()),
            const_value=ir.tensor(array),
        )
        graph.register_initializer(value)
        parameters.append(value)
    return ir.node(op_type, [source, *parameters])
