"""What every TensorFlow kind shares: what tf2onnx wrote is checked, made to fit, and written."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import MODEL, FrontEndError

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


def write_model(model: Any, folder: Path) -> None:
    """Write what tf2onnx made.

    Raises:
        FrontEndError: It left operators in it that ONNX does not have: it does so without a word.
    """
    onnx: Any = importlib.import_module("onnx")
    _replace_erfc(onnx, model)
    foreign: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not _is_known(onnx, node.op_type, model):
            foreign.setdefault(node.op_type, node.name)
    if foreign:
        words = ", ".join(f"{kind} (layer '{name}')" for kind, name in sorted(foreign.items()))
        raise FrontEndError(f"ONNX has no operator for {words}", "unsupported")
    model.ir_version = min(model.ir_version, _IR_VERSION)
    onnx.checker.check_model(model)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def rename_tensors(model: Any, names: Mapping[str, str]) -> None:
    """Rename tensors of the main graph; what has a new name already is put aside."""
    wanted = {old: new for old, new in names.items() if old != new}
    taken = {name for node in model.graph.node for name in node.output} - set(wanted)
    aside = {new: f"{new}_inner" for new in wanted.values() if new in taken}
    table = {**aside, **wanted}
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [table.get(name, name) for name in field]
    for each in (*model.graph.input, *model.graph.output, *model.graph.value_info):
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


def _replace_erfc(onnx: Any, model: Any) -> None:
    """Write 1 - Erf(x) for Erfc(x), which tf2onnx passes on as if ONNX had it."""
    nodes = list(model.graph.node)
    if not any(node.op_type == "Erfc" for node in nodes):
        return
    del model.graph.node[:]
    for node in nodes:
        if node.op_type != "Erfc":
            model.graph.node.append(node)
            continue
        make, (source,), (result,) = onnx.helper.make_node, node.input, node.output
        one = onnx.numpy_helper.from_array(np.array(1, np.float32), f"{result}_one")
        model.graph.initializer.append(one)
        erf = make("Erf", [source], [f"{result}_erf"], name=f"{node.name}/Erf")
        model.graph.node.extend(
            [erf, make("Sub", [one.name, *erf.output], [result], name=node.name)]
        )


def _is_known(onnx: Any, op_type: str, model: Any) -> bool:
    opset = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return bool(onnx.defs.has(op_type, opset, ""))
