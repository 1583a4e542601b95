"""Dynamic range: a .tflite file whose weights are codes and whose activations are real.

TensorFlow Lite rounds the activations of such operators to 8 bits at every run, each kernel in its
own way. ONNX has the codes of the weights and real activations, so what it computes is held against
the same file with its weights made real.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import Array


def with_real_weights(path: str) -> bytes | None:
    """The file at ``path`` with the weights of such operators dequantized; None if it has none."""
    tools: Any = importlib.import_module("tensorflow.lite.tools.flatbuffer_utils")
    schema: Any = importlib.import_module("tensorflow.lite.python.schema_py_generated")
    model = tools.read_model(path)
    changed = False
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = model.operatorCodes[operator.opcodeIndex].builtinCode
            if kind == schema.BuiltinOperator.DEQUANTIZE or not _gives_reals(
                schema, graph, operator
            ):
                continue
            for place, index in enumerate(operator.inputs):
                real = _dequantized(schema, model, graph.tensors[index]) if index >= 0 else None
                if real is not None:
                    operator.inputs[place] = _add(schema, model, graph, index, real)
                    changed = True
    return bytes(tools.convert_object_to_bytearray(model)) if changed else None


def _gives_reals(schema: Any, graph: Any, operator: Any) -> bool:
    return all(graph.tensors[index].type == schema.TensorType.FLOAT32 for index in operator.outputs)


def _dequantized(schema: Any, model: Any, tensor: Any) -> Array | None:
    """The real numbers of a constant that is stored in 8 bits; None for everything else."""
    quantization, data = tensor.quantization, model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.INT8 or quantization is None or data is None:
        return None
    if quantization.scale is None or len(quantization.scale) == 0 or len(data) == 0:
        return None
    dims: list[int] = [int(dim) for dim in tensor.shape]
    codes = np.frombuffer(bytes(data), np.int8).reshape(dims).astype(np.float32)
    scale: Array = np.asarray(quantization.scale, np.float32)
    zero: Array = np.zeros_like(scale)
    if quantization.zeroPoint is not None:
        zero = np.asarray(quantization.zeroPoint, np.float32)
    if scale.size > 1:
        shape = [1] * len(dims)
        shape[quantization.quantizedDimension] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (codes - zero) * scale


def _add(schema: Any, model: Any, graph: Any, index: int, real: Array) -> int:
    """A tensor like that at ``index`` with real numbers; the old one may have other readers."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(real.astype(np.float32).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor = copy.copy(graph.tensors[index])
    tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
