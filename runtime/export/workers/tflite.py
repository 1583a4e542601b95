"""TensorFlow Lite: quantization stays, as Q/DQ with the very numbers of the file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import (
    Answer,
    Feed,
    FrontEndError,
    Request,
    read_feeds,
    write_samples,
)
from onnxfold.runtime.export.workers.tf2onnx_models import load_tf2onnx, versions, write_model

_REFERENCE = "BUILTIN_REF"
"""The plain kernels, which define what a model means; those for speed round in other places."""


def export(request: Request, folder: Path) -> Answer:
    """Convert a .tflite file, and run TensorFlow Lite's reference kernels on it."""
    tf2onnx = load_tf2onnx()
    interpreter = _interpreter(request.path)
    try:
        model, _ = tf2onnx.convert.from_tflite(request.path, opset=request.opset)
    except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
        words = str(error) or type(error).__name__
        raise FrontEndError(f"tf2onnx cannot convert it: {words}", "unsupported") from error
    write_model(model, folder)
    inputs = [each["name"] for each in interpreter.get_input_details()]
    outputs = [each["name"] for each in interpreter.get_output_details()]
    feeds = read_feeds(folder) or _made_up(interpreter, request)
    names = [each.name for each in model.graph.input], [each.name for each in model.graph.output]
    expected = [_run(interpreter, feed) for feed in feeds]
    write_samples(
        folder,
        [_renamed(feed, inputs, names[0]) for feed in feeds],
        [_renamed(found, outputs, names[1]) for found in expected],
    )
    return Answer(tuple(names[0]), tuple(names[1]), versions(), count=len(feeds))


def _interpreter(path: str) -> Any:
    tf: Any = importlib.import_module("tensorflow")
    kernels = getattr(tf.lite.experimental.OpResolverType, _REFERENCE)
    try:
        interpreter = tf.lite.Interpreter(
            model_path=path, experimental_op_resolver_type=kernels, num_threads=1
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise FrontEndError(f"TensorFlow Lite cannot load it: {error}") from error
    return interpreter


def _made_up(interpreter: Any, request: Request) -> list[Feed]:
    """Random inputs: all codes of quantized ones, normal numbers else."""
    rng = np.random.default_rng(request.seed)
    return [
        {each["name"]: _draw(each, rng) for each in interpreter.get_input_details()}
        for _ in range(request.samples)
    ]


def _draw(detail: Mapping[str, Any], rng: np.random.Generator) -> Any:
    dtype, shape = np.dtype(detail["dtype"]), tuple(detail["shape"])
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(2, size=shape).astype(dtype)
    if dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, size=shape, endpoint=True, dtype=dtype)
    return rng.integers(2, size=shape).astype(dtype)


def _run(interpreter: Any, feed: Feed) -> Feed:
    for each in interpreter.get_input_details():
        name = each["name"]
        if name not in feed:
            known = ", ".join(f"'{key}'" for key in feed)
            raise FrontEndError(f"input '{name}' is not fed; the data has {known}", "usage")
        try:
            interpreter.set_tensor(each["index"], feed[name])
        except ValueError as error:
            raise FrontEndError(f"input '{name}': {error}", "usage") from error
    interpreter.invoke()
    return {
        each["name"]: interpreter.get_tensor(each["index"]).copy()
        for each in interpreter.get_output_details()
    }


def _renamed(feed: Feed, names: Sequence[str], new_names: Sequence[str]) -> Feed:
    """By the names in ONNX: those of the file where they are there, else by position."""
    places = dict(zip(names, new_names, strict=True))
    return {name if name in new_names else places[name]: array for name, array in feed.items()}
