"""The operators of a TensorFlow Lite file: which tensor each computes, and its values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from onnxfold.runtime.export.workers.protocol import Feed

_ADDED = re.compile(r"(?:_prequant|_dequant|__\d+).*$")
"""What tf2onnx puts behind the name of a tensor for the steps on the way to it."""


def layers_of(interpreter: Any, names: Iterable[str]) -> dict[str, str]:
    """The operators that tensors of the ONNX model come from: ``conv1/Relu (CONV_2D, operator 3)``.

    A fused operator has the names of all its parts; the first one, which is the last part, stays.

    Args:
        interpreter: Of the file, without delegates: they hide operators.
        names: Names of tensors in ONNX.
    """
    tensors = {each["index"]: str(each["name"]) for each in interpreter.get_tensor_details()}
    made_by: dict[str, str] = {}
    for operator in interpreter._get_ops_details():  # there is no public way
        kind = f"{operator['op_name']}, operator {operator['index']}"
        for index in operator["outputs"]:
            name = tensors.get(index, "")
            made_by.setdefault(name, f"{name.partition(';')[0]} ({kind})")
    found = {name: made_by.get(name) or made_by.get(_ADDED.sub("", name)) for name in names}
    return {name: layer for name, layer in found.items() if layer}


def values_inside(interpreter: Any, names: Iterable[str]) -> Feed:
    """What an interpreter that keeps all tensors has computed in its last run.

    Args:
        interpreter: Made with ``experimental_preserve_all_tensors``.
        names: What is asked for; what the file does not have is left out.
    """
    places: dict[str, int] = {}
    for each in interpreter.get_tensor_details():
        places.setdefault(str(each["name"]), each["index"])
    return {name: interpreter.get_tensor(places[name]).copy() for name in names if name in places}
