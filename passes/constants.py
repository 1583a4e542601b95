"""What is known at compile time: the constant behind a value, without executing anything."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]
"""An array of any element type."""


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind ``value``, or None where it is not constant.

    An initializer that no caller can override, or the output of a Constant node; seen through
    Identity nodes.
    """
    while value is not None:
        if value.is_initializer():
            return None if value.is_graph_input() else value.const_value
        producer = value.producer()
        if producer is None or producer.domain:
            return None
        if producer.op_type == "Constant":
            return _constant_node_tensor(producer)
        if producer.op_type != "Identity":
            return None
        value = producer.inputs[0]
    return None


def constant_array(value: ir.Value | None) -> Array | None:
    """The constant behind ``value`` as an array (shared memory: do not write), or None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def constant_scalar(value: ir.Value | None) -> float | int | bool | None:
    """The constant behind ``value`` if it has exactly one element, as a Python number."""
    array = constant_array(value)
    return None if array is None or array.size != 1 else array.reshape(()).item()


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integer constant behind ``value`` (axes, shapes, pads) as a flat tuple, or None."""
    array = constant_array(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return tuple(int(element) for element in array.reshape(-1).tolist())


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor a Constant node makes; None for sparse, string or referenced attributes."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        match name:
            case "value":
                return attribute.as_tensor()
            case "value_float":
                return ir.tensor(np.float32(attribute.as_float()))
            case "value_floats":
                return ir.tensor(np.array(attribute.as_floats(), dtype=np.float32))
            case "value_int":
                return ir.tensor(np.int64(attribute.as_int()))
            case "value_ints":
                return ir.tensor(np.array(attribute.as_ints(), dtype=np.int64))
            case _:
                return None
    return None
