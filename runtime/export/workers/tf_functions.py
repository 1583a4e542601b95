"""Exports a Python function of TensorFlow: converts it, names its outputs, and runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from onnxfold.runtime.export.workers.protocol import (
    FEEDS,
    Answer,
    Feed,
    FrontEndError,
    Request,
    write_layers,
    write_samples,
)
from onnxfold.runtime.export.workers.samples import Port, renamed, samples
from onnxfold.runtime.export.workers.tf2onnx_models import (
    Layers,
    check_operators,
    load_tf2onnx,
    rename_tensors,
    tensors_of,
    versions,
    write_model,
)
from onnxfold.runtime.export.workers.tf_layers import scopes_of, values_inside


def export_function(
    call: Callable[..., Any],
    signature: Sequence[Any],
    request: Request,
    folder: Path,
    layers: Layers = scopes_of,
) -> Answer:
    """Export ``call``, which takes tensors as ``signature`` has them, one after the other.

    Args:
        call: Returns a tensor, a list of tensors, or a dict of them by name.
        signature: A ``tf.TensorSpec`` with a name for each argument.
        request: What is to be exported.
        folder: Where the answer goes.
        layers: Names the layers that tensors come from.

    Raises:
        FrontEndError: tf2onnx cannot convert it, or it does not run on the samples.
    """
    tf: Any = importlib.import_module("tensorflow")
    ports = [_port(each) for each in signature]
    inputs = [port.name for port in ports]
    feeds, found = _answers(tf, call, samples(request, folder, ports), ports, folder)
    outputs = list(found[0])
    names: tuple[Sequence[str], Sequence[str]] = request.inputs, request.outputs
    function, made_by = _flat(tf, call), dict[str, str]()
    if not request.runs_only:
        model = _converted(function, signature, request, layers)
        nodes = [f"{node.name}:0" for node in model.graph.node]
        made_by = dict(layers([*tensors_of(model), *nodes]))
        _name_outputs(model, outputs, made_by)
        write_model(model, folder)
        names = inputs, outputs
    elif request.tensors:
        concrete = function.get_concrete_function(*signature)
        write_layers(folder, values_inside(concrete, inputs, feeds, request.tensors))
    write_samples(
        folder,
        [renamed(feed, inputs, names[0]) for feed in feeds],
        [renamed(each, outputs, names[1]) for each in found],
    )
    return Answer(tuple(names[0]), tuple(names[1]), versions(), made_by, count=len(feeds))


def _flat(tf: Any, call: Callable[..., Any]) -> Any:
    """``call`` as a function of TensorFlow that returns a list."""

    def flat(*arrays: Any) -> Any:
        with _traced_in_place(tf):
            return [tf.identity(each) for each in _named(call(*arrays)).values()]

    return tf.function(flat)


@contextmanager
def _traced_in_place(tf: Any) -> Generator[None]:
    """Trace into what XLA would compile by itself, which tf2onnx does not look into.

    Keras has it compile its grouped convolutions on CPUs.
    """
    function = tf.function

    def as_it_is(*arguments: Any, **options: Any) -> Any:
        if not options.get("jit_compile"):
            return function(*arguments, **options)
        return arguments[0] if arguments else _itself

    tf.function = as_it_is
    try:
        yield
    finally:
        tf.function = function


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _converted(function: Any, signature: Sequence[Any], request: Request, layers: Layers) -> Any:
    tf2onnx = load_tf2onnx()
    try:
        model, _ = tf2onnx.convert.from_function(
            function, input_signature=list(signature), opset=request.opset
        )
    except (ValueError, KeyError, AssertionError, NotImplementedError, TypeError) as error:
        words = str(error) or type(error).__name__
        raise FrontEndError(f"tf2onnx cannot convert it: {words}", "unsupported") from error
    captures = function.get_concrete_function(*signature).graph.captures
    _fix_captures(model, [each.name for each in signature], captures)
    check_operators(model, layers)
    return model


def _fix_captures(model: Any, inputs: Sequence[str], captures: Iterable[tuple[Any, Any]]) -> None:
    """Make constants of what tf2onnx left as inputs: tensors that a loaded function holds on to."""
    onnx: Any = importlib.import_module("onnx")
    held = {str(inner.name).partition(":")[0]: outer for outer, inner in captures}
    for each in list(model.graph.input):
        name = str(each.name).partition(":")[0]
        if name in inputs:
            continue
        if name not in held:
            raise FrontEndError(f"'{name}' is an input that no argument feeds", "unsupported")
        if str(held[name].dtype.name) in ("resource", "variant"):
            words = f"it holds a table or another resource ('{name}'), which ONNX has no form for"
            raise FrontEndError(words, "unsupported")
        values = onnx.numpy_helper.from_array(held[name].numpy(), each.name)
        model.graph.initializer.append(values)
        model.graph.input.remove(each)


def _name_outputs(model: Any, outputs: Sequence[str], layers: dict[str, str]) -> None:
    """Give the outputs, which tf2onnx numbers, the names that the framework has for them."""
    written = [each.name for each in model.graph.output]
    numbers = sorted(written, key=lambda name: (len(name), name))
    names = dict(zip(numbers, outputs, strict=True))
    # An output is an identity in TensorFlow, which has no layer: its node says what computes it.
    for node in model.graph.node:
        for name in set(node.output) & set(names):
            layer = layers.pop(name, "") or layers.get(f"{node.name}:0", "")
            layers |= {names[name]: layer} if layer else {}
    rename_tensors(model, names)
    inputs = {each.name: each.name.partition(":")[0] for each in model.graph.input}
    rename_tensors(model, inputs)


def _answers(
    tf: Any, call: Callable[..., Any], feeds: Sequence[Feed], ports: Sequence[Port], folder: Path
) -> tuple[list[Feed], list[Feed]]:
    """What the function makes of each feed; of made-up ones, those that it takes."""
    taken: list[Feed] = []
    found: list[Feed] = []
    for feed in feeds:
        try:
            found.append(_run(tf, call, feed, ports))
        except FrontEndError:
            # Not every model takes several rows, whatever its shapes say.
            if not taken or (folder / FEEDS).is_file():
                raise
        else:
            taken.append(feed)
    return taken, found


def _run(tf: Any, call: Callable[..., Any], feed: Feed, ports: Sequence[Port]) -> Feed:
    try:
        found = call(*(tf.constant(feed[port.name]) for port in ports))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise FrontEndError(f"it does not run on the samples: {error}", "usage") from error
    return {name: np.asarray(tensor) for name, tensor in _named(found).items()}


def _named(found: Any) -> dict[str, Any]:
    """The outputs by name; numbered where the framework has no names for them."""
    if isinstance(found, dict):
        return dict(cast("dict[str, Any]", found))
    tensors = in_list(found)
    names = ["output"] if len(tensors) == 1 else [f"output_{i}" for i in range(len(tensors))]
    return dict(zip(names, tensors, strict=True))


def in_list(found: Any) -> list[Any]:
    """What a function returned, as a list: one tensor or several."""
    return list(cast("Sequence[Any]", found)) if isinstance(found, list | tuple) else [found]


def _port(spec: Any) -> Port:
    if spec.shape.rank is None:
        raise FrontEndError(
            f"input '{spec.name}' says not even how many dimensions it has: save the model with a "
            "signature that does",
            "unsupported",
        )
    shape = tuple(None if dim is None else int(dim) for dim in spec.shape)
    return Port(str(spec.name), np.dtype(spec.dtype.as_numpy_dtype), shape)
