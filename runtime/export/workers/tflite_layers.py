"""The operators of a TensorFlow Lite file: which tensor each computes, its values, its range."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import Feed, FrontEndError

_ADDED = re.compile(r"(?:_prequant|_dequant|__\d+).*$")
"""What tf2onnx puts behind the name of a tensor for the steps on the way to it."""

_VARIABLES = frozenset({"ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE"})


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


def spans_of(interpreter: Any) -> dict[str, tuple[float, float]]:
    """What the inputs range over: all their codes, or what the codes mean that they become.

    Args:
        interpreter: Of the file.

    Returns:
        The least and the largest value by the name of the input; nothing for one that is neither
        codes nor made into codes.
    """
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    found: dict[str, tuple[float, float]] = {}
    for each in interpreter.get_input_details():
        name, dtype = str(each["name"]), np.dtype(each["dtype"])
        if dtype.kind in "iu" and len(each["quantization_parameters"]["scales"]):
            limits = np.iinfo(dtype)
            found[name] = float(limits.min), float(limits.max)
    for operator in interpreter._get_ops_details():  # there is no public way
        if operator["op_name"] == "QUANTIZE":
            source, codes = (details[operator[key][0]] for key in ("inputs", "outputs"))
            if np.dtype(source["dtype"]).kind == "f":
                found.setdefault(str(source["name"]), _reach(codes))
    return found


def _reach(codes: Any) -> tuple[float, float]:
    """What the least and the largest code mean."""
    limits = np.iinfo(np.dtype(codes["dtype"]))
    (scale,), (zero,) = (codes["quantization_parameters"][key] for key in ("scales", "zero_points"))
    return float((limits.min - zero) * scale), float((limits.max - zero) * scale)


def refuse_variables(interpreter: Any) -> None:
    """Streaming models may keep state from one call to the next, where ONNX has no place for it.

    Raises:
        FrontEndError: It does.
    """
    kinds = (str(each["op_name"]) for each in interpreter._get_ops_details())
    found = dict.fromkeys(each for each in kinds if each in _VARIABLES)
    if found:
        words = f"it keeps its state in variables ({', '.join(found)}), which ONNX does not have"
        advice = "convert it to TensorFlow Lite with its state as inputs and outputs"
        raise FrontEndError(f"{words}: {advice}", "unsupported")
