"""What a pass changed, as a diff of the model's text."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import onnx
import onnx.printer
import onnx_ir as ir

from onnxfold.passes.walk import all_graphs, all_nodes

_PRINTED_ELEMENTS = 8
_LONGEST_EXACT_DIFF = 20_000  # lines; difflib's worst case is quadratic


def model_text(model: ir.Model) -> str:
    """The model as ONNX text, one line a node; large tensors as type, shape and a short hash.

    Initializers come after the nodes, one a line, so that a diff shows them one by one.
    """
    copy = model.clone()
    constants: list[str] = []
    for graph in all_graphs(copy):
        for name, value in list(graph.initializers.items()):
            constants.append(f"{name} = {_tensor_text(value.const_value)}")
            graph.initializers.pop(name)
    for node in all_nodes(copy):
        for name, attribute in list(node.attributes.items()):
            if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
                continue
            node.attributes[name] = ir.AttrString(name, _tensor_text(attribute.as_tensor()))
    proto = ir.to_proto(copy)
    for root in (proto.graph, *proto.functions):
        _drop_types(root)
    return "\n".join([onnx.printer.to_text(proto), *constants]) + "\n"


def diff_text(before: str, after: str, name: str = "model") -> str:
    """A unified diff of two models' texts; empty where they are equal.

    Where more than 20,000 lines differ at a stretch, lines are compared as a set: order is lost,
    nothing else.
    """
    old, new = before.splitlines(), after.splitlines()
    start = _common_prefix(old, new)
    end = _common_prefix(old[start:][::-1], new[start:][::-1])
    middle = (old[start : len(old) - end], new[start : len(new) - end])
    if max(map(len, middle)) > _LONGEST_EXACT_DIFF:
        lines = _set_difference(*middle)
    else:
        lines = difflib.unified_diff(old, new, f"{name} before", f"{name} after", lineterm="", n=2)
    return "".join(f"{line}\n" for line in lines)


def _common_prefix(left: Sequence[str], right: Sequence[str]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _set_difference(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    for sign, lines, others in (("-", old, new), ("+", new, old)):
        left = Counter(others)
        for line in lines:
            if left[line] > 0:
                left[line] -= 1
            else:
                yield f"{sign}{line}"


def _tensor_text(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return "(no value)"
    shape = ",".join(map(str, tensor.shape.numpy()))
    kind = f"{tensor.dtype.name.lower()}[{shape}]"
    if tensor.size <= _PRINTED_ELEMENTS:
        return f"{kind} {{{', '.join(map(str, tensor.numpy().reshape(-1).tolist()))}}}"
    return f"{kind} sha256:{hashlib.sha256(tensor.tobytes()).hexdigest()[:12]}"


def _drop_types(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    graph.ClearField("value_info")
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    _drop_types(body)
