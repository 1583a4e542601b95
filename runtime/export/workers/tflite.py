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
    write_layers,
    write_samples,
)
from onnxfold.runtime.export.workers.samples import Port, renamed, samples
from onnxfold.runtime.export.workers.tf2onnx_models import (
    check_operators,
    load_tf2onnx,
    rename_tensors,
    tensors_of,
    versions,
    write_model,
)
from onnxfold.runtime.export.workers.tflite_hybrid import with_real_weights
from onnxfold.runtime.export.workers.tflite_layers import (
    layers_of,
    refuse_variables,
    spans_of,
    values_inside,
)
from onnxfold.runtime.export.workers.tflite_means import round_means_of_codes
from onnxfold.runtime.export.workers.tflite_types import admit_wide_codes, store_halves

_DEFAULT, _REFERENCE = "AUTO", "BUILTIN_REF"
"""The kernels that applications get (XNNPACK), which round a sum once, as QuantizeLinear does; and
the plain ones, which round it twice."""
_WIDE = "it is written in opset 21, the first with activations of 16 bits"
_HYBRID = (
    "its kernels round activations to 8 bits at every run, which is not exported: it is held "
    "against the same file with its weights made real"
)
_LOOKED_INTO = 2
"""Samples of which all that is computed inside is told."""


def export(request: Request, folder: Path) -> Answer:
    """Convert a .tflite file, and run TensorFlow Lite's kernels on it."""
    interpreter = _interpreter(request.path, _DEFAULT)
    real = with_real_weights(request.path)
    details = interpreter.get_input_details()
    inputs = [str(each["name"]) for each in details]
    outputs = [str(each["name"]) for each in interpreter.get_output_details()]
    names: tuple[Sequence[str], Sequence[str]] = request.inputs, request.outputs
    layers: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    tensors = request.tensors
    if not request.runs_only:
        model = _converted(request, interpreter)
        if admit_wide_codes(model):
            notes = (_WIDE,)
        # tf2onnx may sort them: by name where it kept the names.
        written = (
            *_in_order(inputs, [each.name for each in model.graph.input]),
            *_in_order(outputs, [each.name for each in model.graph.output]),
        )
        known = _names_of_signature(interpreter)
        wanted = [known.get(name, name) for name in (*inputs, *outputs)]
        if len(set(wanted)) < len(wanted):
            wanted = list(written)
        table = dict(zip(written, wanted, strict=True))
        layers = {
            table.get(name, name): layer
            for name, layer in layers_of(interpreter, tensors_of(model)).items()
        }
        rename_tensors(model, table)
        write_model(model, folder)
        tensors = tensors_of(model)
        names = (wanted[: len(inputs)], wanted[len(inputs) :])
    spans = spans_of(interpreter)
    feeds = samples(request, folder, [_port(each, spans) for each in details])
    judges = (interpreter, _interpreter(request.path, _REFERENCE))
    if real is not None:
        judges = (_interpreter(real, _DEFAULT), interpreter)
        notes = (*notes, _HYBRID)
    runs = [[_run(each, feed) for feed in feeds] for each in judges]
    write_samples(
        folder,
        [renamed(feed, inputs, names[0]) for feed in feeds],
        *([renamed(found, outputs, names[1]) for found in run] for run in runs),
    )
    if tensors:
        # Kernels that XNNPACK takes over hide what is between them.
        inner = _interpreter(request.path if real is None else real, _REFERENCE, keep=True)
        inside = [_inside(inner, feed, tensors, outputs, names[1]) for feed in feeds[:_LOOKED_INTO]]
        write_layers(folder, inside)
    return Answer(tuple(names[0]), tuple(names[1]), versions(), layers, notes, count=len(feeds))


def _inside(
    interpreter: Any,
    feed: Feed,
    tensors: Sequence[str],
    outputs: Sequence[str],
    new_names: Sequence[str],
) -> Feed:
    """What it computes between, and at the end: by the same kernels, which round alike."""
    found = renamed(_run(interpreter, feed), outputs, new_names)
    return {**values_inside(interpreter, tensors), **found}


def _converted(request: Request, interpreter: Any) -> Any:
    refuse_variables(interpreter)
    tf2onnx = load_tf2onnx()
    try:
        model, _ = tf2onnx.convert.from_tflite(request.path, opset=request.opset)
    except (ValueError, LookupError, AssertionError, NotImplementedError) as error:
        words = str(error) or type(error).__name__
        raise FrontEndError(f"tf2onnx cannot convert it: {words}", "unsupported") from error
    round_means_of_codes(model)
    if _has_halves(interpreter):
        store_halves(model)
    check_operators(model, lambda names: layers_of(interpreter, names))
    return model


def _has_halves(interpreter: Any) -> bool:
    return any(each["dtype"] == np.float16 for each in interpreter.get_tensor_details())


def _interpreter(model: str | bytes, kernels: str, *, keep: bool = False) -> Any:
    """An interpreter of a file, or of what would be in one."""
    tf: Any = importlib.import_module("tensorflow")
    resolver = getattr(tf.lite.experimental.OpResolverType, kernels)
    try:
        interpreter = tf.lite.Interpreter(
            **({"model_path": model} if isinstance(model, str) else {"model_content": model}),
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep,
            num_threads=1,
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        if kernels == _REFERENCE:
            # Some operators have no plain kernel, ELU and Ceil for two.
            return _interpreter(model, _DEFAULT, keep=keep)
        raise FrontEndError(f"TensorFlow Lite cannot load it: {error}") from error
    return interpreter


def _names_of_signature(interpreter: Any) -> Mapping[str, str]:
    """Tensors to what the file's signature calls them: 'serving_default_image:0' is its 'image'.

    Several signatures may be about several graphs, so that only a single one is taken.
    """
    signatures = list(interpreter.get_signature_list())
    if len(signatures) != 1:
        return {}
    runner = interpreter.get_signature_runner(signatures[0])
    details = (runner.get_input_details(), runner.get_output_details())
    return {str(each["name"]): name for group in details for name, each in group.items()}


def _port(detail: Mapping[str, Any], spans: Mapping[str, tuple[float, float]]) -> Port:
    shape, name = tuple(int(dim) for dim in detail["shape"]), str(detail["name"])
    return Port(name, np.dtype(detail["dtype"]), shape, spans.get(name))


def _run(interpreter: Any, feed: Feed) -> Feed:
    for each in interpreter.get_input_details():
        try:
            interpreter.set_tensor(each["index"], feed[each["name"]])
        except ValueError as error:
            raise FrontEndError(f"input '{each['name']}': {error}", "usage") from error
    interpreter.invoke()
    return {
        each["name"]: interpreter.get_tensor(each["index"]).copy()
        for each in interpreter.get_output_details()
    }


def _in_order(names: Sequence[str], written: Sequence[str]) -> list[str]:
    """What tf2onnx called each of ``names``."""
    return list(names) if set(names) == set(written) else list(written)
