"""Converts one model with tf2onnx, with its own optimizer or without: runs where TensorFlow is.

``python tf2onnx_worker.py SOURCE RESULT with|without``; SOURCE is a .tflite or .h5 file.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def main(source: str, result: str, optimizer: str) -> None:
    """Convert ``source`` and write ``result``."""
    tf2onnx: Any = importlib.import_module("tf2onnx")
    importlib.import_module("tf2onnx.convert")
    if optimizer == "without":
        tf2onnx.optimizer.optimize_graph = _as_it_is
    model = _lite(tf2onnx, source) if source.endswith(".tflite") else _keras(tf2onnx, source)
    Path(result).write_bytes(model.SerializeToString(deterministic=True))


def _as_it_is(graph: Any, *_: Any, **__: Any) -> Any:
    return graph


def _lite(tf2onnx: Any, source: str) -> Any:
    return tf2onnx.convert.from_tflite(source, opset=18)[0]


def _keras(tf2onnx: Any, source: str) -> Any:
    tf: Any = importlib.import_module("tensorflow")
    keras: Any = importlib.import_module("tf_keras")
    network = keras.models.load_model(source, compile=False)
    given = network.inputs[0]
    signature = [tf.TensorSpec(given.shape, given.dtype, name="input")]

    @tf.function(input_signature=signature)
    def call(data: Any) -> Any:
        return network(data, training=False)

    return tf2onnx.convert.from_function(call, input_signature=signature, opset=18)[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
