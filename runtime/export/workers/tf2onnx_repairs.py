"""Puts right what tf2onnx passes on as if ONNX had it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

_CONTRIB = "com.microsoft"
_STANDARD_SINCE = frozenset({"Range"})
"""What tf2onnx writes in ONNX Runtime's own domain, though ONNX has the same (since opset 11)."""

Form = tuple[tuple[str, tuple[str | int | float, ...]], ...]
"""Operators in a row; each takes the input ("x"), results of those before it (by number), and
constants."""

_FORMS: dict[str, Form] = {
    "Erfc": (("Erf", ("x",)), ("Sub", (1.0, 0))),
    "Expm1": (("Exp", ("x",)), ("Sub", (0, 1.0))),
    "Log1p": (("Add", ("x", 1.0)), ("Log", (0,))),
    "TFL_RELU_N1_TO_1": (("Clip", ("x", -1.0, 1.0)),),
}
_GELU: Form = (
    ("Mul", ("x", math.sqrt(0.5))),
    ("Erf", (0,)),
    ("Add", (1, 1.0)),
    ("Mul", ("x", 0.5)),
    ("Mul", (3, 2)),
)
_GELU_BY_TANH: Form = (
    ("Mul", ("x", "x")),
    ("Mul", (0, "x")),
    ("Mul", (1, 0.044715)),
    ("Add", ("x", 2)),
    ("Mul", (3, math.sqrt(2 / math.pi))),
    ("Tanh", (4,)),
    ("Add", (5, 1.0)),
    ("Mul", ("x", 0.5)),
    ("Mul", (7, 6)),
)


def repair(model: Any) -> None:
    """Replace operators that ONNX does not have by those that it has, in bodies too.

    Args:
        model: An ``onnx.ModelProto``, changed in place.
    """
    onnx: Any = importlib.import_module("onnx")
    for node in (node for graph in graphs_of(model.graph) for node in graph.node):
        if node.domain == _CONTRIB and node.op_type in _STANDARD_SINCE:
            node.domain = ""
    _take_apart(onnx, model)


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and the bodies in it, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node or body.output:
                    yield from graphs_of(body)


def _take_apart(onnx: Any, model: Any) -> None:
    graphs = [graph for graph in graphs_of(model.graph) if any(map(_form, graph.node))]
    if not graphs:
        return
    types = _types_of_results(onnx, model)
    for graph in graphs:
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            form = _form(node)
            graph.node.extend(_parts(onnx, node, form, types) if form else [node])


def _form(node: Any) -> Form:
    """What a node is to become; nothing if it may stay."""
    if node.op_type != "TFL_GELU":
        return _FORMS.get(node.op_type, ())
    by_tanh = any(each.name == "approximate" and each.i for each in node.attribute)
    return _GELU_BY_TANH if by_tanh else _GELU


def _types_of_results(onnx: Any, model: Any) -> dict[str, int]:
    """Element types by tensor; Erf, which shape inference knows, has those of what is missing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in (node for graph in graphs_of(copy.graph) for node in graph.node):
        if _form(node):
            node.op_type = "Erf"
            del node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(copy)
    return {
        each.name: each.type.tensor_type.elem_type
        for graph in graphs_of(inferred.graph)
        for each in (*graph.value_info, *graph.output)
    }


def _parts(onnx: Any, node: Any, form: Form, types: Mapping[str, int]) -> list[Any]:
    (source,), (result,) = node.input, node.output
    element = types.get(result, onnx.TensorProto.FLOAT)
    names = [f"{result}_part{place}" for place in range(len(form) - 1)] + [result]
    made: list[Any] = []
    for place, (kind, operands) in enumerate(form):
        inputs: list[str] = []
        for operand in operands:
            if isinstance(operand, float):
                name = f"{result}_constant{len(made)}"
                value = onnx.helper.make_tensor(name, element, [], [operand])
                made.append(onnx.helper.make_node("Constant", [], [name], name=name, value=value))
                inputs.append(name)
            else:
                inputs.append(names[operand] if isinstance(operand, int) else source)
        label = node.name if place == len(form) - 1 else f"{node.name}/{kind}_{place}"
        made.append(onnx.helper.make_node(kind, inputs, [names[place]], name=label))
    return made
