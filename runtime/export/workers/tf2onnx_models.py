"""What every TensorFlow kind shares: what tf2onnx wrote is checked, made to fit, and written."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import MODEL, FrontEndError
from onnxfold.runtime.export.workers.tf2onnx_repairs import graphs_of, repair

Layers = Callable[[Iterable[str]], Mapping[str, str]]
"""Names the layers that tensors come from, as far as it knows them."""

_IR_VERSION = 10


def load_tf2onnx() -> Any:
    """tf2onnx, silent.

    Raises:
        ImportError: It or TensorFlow is missing.
    """
    importlib.import_module("tensorflow")
    tf2onnx = importlib.import_module("tf2onnx")
    importlib.import_module("tf2onnx.convert")
    return tf2onnx


def check_operators(model: Any, layers: Layers) -> None:
    """Put in order what tf2onnx passes on without a word.

    Args:
        model: An ``onnx.ModelProto``, changed in place.
        layers: Names the layers that tensors come from.

    Raises:
        FrontEndError: It holds operators that ONNX does not have; names them with their layers.
    """
    onnx: Any = importlib.import_module("onnx")
    repair(model)
    foreign: dict[str, str] = {}
    for node in (node for graph in graphs_of(model.graph) for node in graph.node):
        if node.domain not in ("", "ai.onnx") or not _is_known(onnx, node.op_type, model):
            name = f"{node.name}:0"
            foreign.setdefault(node.op_type, layers([name]).get(name) or node.name)
    if foreign:
        words = ", ".join(f"{kind} (layer '{name}')" for kind, name in sorted(foreign.items()))
        raise FrontEndError(f"ONNX has no operator for {words}", "unsupported")


def tensors_of(model: Any) -> list[str]:
    """Names of what the nodes of the main graph compute."""
    return [name for node in model.graph.node for name in node.output if name]


def write_model(model: Any, folder: Path) -> None:
    """Write what tf2onnx made.

    Raises:
        FrontEndError: It is no valid model.
    """
    onnx: Any = importlib.import_module("onnx")
    model.ir_version = min(model.ir_version, _IR_VERSION)
    # The checker wants a shape, of whatever rank, for outputs whose rank nobody knows beforehand.
    tensors = [each.type.tensor_type for each in model.graph.output]
    lacking = [each for each in tensors if not each.HasField("shape")]
    for each in lacking:
        each.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        words = f"tf2onnx made no valid model of it: {error}"
        raise FrontEndError(words, "unsupported") from error
    for each in lacking:
        each.ClearField("shape")
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def rename_tensors(model: Any, names: Mapping[str, str]) -> None:
    """Rename tensors, in bodies too; what has a new name already is put aside."""
    wanted = {old: new for old, new in names.items() if old != new}
    graphs = list(graphs_of(model.graph))
    made = {name for graph in graphs for node in graph.node for name in node.output}
    held = {each.name for graph in graphs for each in (*graph.initializer, *graph.input)}
    taken = (made | held) - set(wanted)
    aside = {new: f"{new}_inner" for new in wanted.values() if new in taken}
    table = {**aside, **wanted}
    for graph in graphs:
        for node in graph.node:
            for field in (node.input, node.output):
                field[:] = [table.get(name, name) for name in field]
        for each in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            each.name = table.get(each.name, each.name)


def versions() -> Mapping[str, str]:
    """Of the packages that exported."""
    names = ("tensorflow", "tf2onnx", "onnx", "keras", "tf_keras")
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            continue
    return found


def _is_known(onnx: Any, op_type: str, model: Any) -> bool:
    opset = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return bool(onnx.defs.has(op_type, opset, ""))
