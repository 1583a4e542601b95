"""Pass ``convert-float32``: lets a float16 or double model compute in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_tensor
from onnxfold.passes.linear import LINEAR_OPS
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.unused import drop_unused
from onnxfold.passes.walk import all_graphs, all_nodes, iterate_graphs, label

_OTHERS = frozenset({ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
_FLOAT = ir.DataType.FLOAT
_DOMAINS = ("", "ai.onnx.ml")
_TYPED_BY_ATTRIBUTE = "dtype"


@dataclass(frozen=True)
class ConvertFloat32(Pass):
    """Convert float16, bfloat16 and double tensors to float32; inputs and outputs keep theirs.

    Quantization is defined on float32, and ONNX Runtime's CPU kernels compute in it. Numbers
    beyond float32 become the largest there is. A model with local functions, sequences of such
    tensors, or operators of other domains that read them stays as it is, with a remark.
    """

    name: ClassVar[str] = "convert-float32"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Convert all graphs, or none."""
        if not any(map(_is_other, (value for node in all_nodes(model) for value in _values(node)))):
            return
        for node in all_nodes(model):
            if reason := _obstacle(node, model):
                rewriter.remark(node, f"the model keeps its types: {reason}")
                return
        for value in [each for each in model.graph.outputs if _is_other(each)]:
            _keep_output(value, rewriter)
        for value in [each for each in model.graph.inputs if _is_other(each)]:
            _keep_input(value, model.graph, rewriter)
        kept = {*model.graph.inputs, *model.graph.outputs}
        constants: dict[ir.Value, ir.Value] = {}
        for node in [each for each in all_nodes(model) if any(map(_is_other, _values(each)))]:
            with rewriter.step("convert-node", node):
                _convert_constants(node, constants, rewriter)
                _convert_attributes(node, rewriter)
        for graph in all_graphs(model):
            values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
            with rewriter.step("convert-types"):
                for value in values:
                    if value not in kept and _is_other(value):
                        rewriter.set_type(value, _FLOAT)


def _values(node: ir.Node) -> list[ir.Value]:
    results = (value for body in iterate_graphs(node) for value in body.outputs)
    return [*(value for value in node.inputs if value is not None), *node.outputs, *results]


def _is_other(value: ir.Value) -> bool:
    return value.dtype in _OTHERS


def computes_in_others(model: ir.Model) -> bool:
    """Whether a linear operator of ``model`` works on such tensors."""
    return any(
        node.op_type in LINEAR_OPS and not node.domain and _is_other(node.outputs[0])
        for node in all_nodes(model)
    )


def _obstacle(node: ir.Node, model: ir.Model) -> str:
    """Why the model cannot be converted; empty where ``node`` is none."""
    if model.functions:
        return "types inside local functions are not known"
    if any(value.name and value.type is None for value in node.outputs):
        return f"the type of what {label(node)} makes is not known; run infer-shapes first"
    if not any(map(_is_other, _values(node))):
        return ""
    if node.domain not in _DOMAINS:
        return f"{label(node)} may not compute in float32"
    if _TYPED_BY_ATTRIBUTE in node.attributes:
        return f"an attribute of {label(node)} says what it makes"
    if any(
        v.is_initializer() and _is_other(v) for body in iterate_graphs(node) for v in body.outputs
    ):
        return f"a constant is a result of {label(node)}"
    if any(v.type is not None and not isinstance(v.type, ir.TensorType) for v in _values(node)):
        return f"{label(node)} handles sequences"
    return ""


def _keep_output(value: ir.Value, rewriter: Rewriter) -> None:
    """Cast ``value`` back where it leaves the model."""
    producer, kind = value.producer(), value.dtype
    if producer is None or kind is None:
        return
    with rewriter.step("convert-output", producer):
        readers = {use.node for use in value.uses()}
        cast = _cast(producer, value, kind, rewriter, after=True)
        rewriter.replace_value(value, cast, keep=readers)
        rewriter.set_type(cast, kind)


def _keep_input(value: ir.Value, graph: ir.Graph, rewriter: Rewriter) -> None:
    """Let all readers of an input read it as float32."""
    uses = tuple(value.uses())
    if not uses or value.is_initializer():
        return
    readers = dict.fromkeys(node for node, _ in uses)
    with rewriter.step("convert-input", sources=readers):
        cast = _cast(graph[0], value, _FLOAT, rewriter, after=False)
        for node, index in uses:
            rewriter.set_input(node, index, cast)


def _cast(
    anchor: ir.Node, value: ir.Value, kind: ir.DataType, rewriter: Rewriter, *, after: bool
) -> ir.Value:
    return rewriter.insert(
        anchor,
        "Cast",
        [value],
        name=f"{value.name}_{kind.name.lower()}",
        attributes={"to": int(kind)},
        dtype=kind,
        shape=value.shape,
        after=after,
    )


def _convert_constants(
    node: ir.Node, constants: dict[ir.Value, ir.Value], rewriter: Rewriter
) -> None:
    for index, value in enumerate(node.inputs):
        tensor = constant_tensor(value)
        if value is None or tensor is None or tensor.dtype not in _OTHERS:
            continue
        if value not in constants:
            graph = value.graph or node.graph
            assert isinstance(graph, ir.Graph)
            data = _to_float32(tensor.numpy())
            constants[value] = rewriter.add_initializer(graph, data, name=f"{value.name}_float")
        rewriter.set_input(node, index, constants[value])
        drop_unused(value, rewriter)


def _convert_attributes(node: ir.Node, rewriter: Rewriter) -> None:
    """Types that an operator is told: by Cast and ConstantOfShape."""
    made = node.outputs[0].dtype if node.outputs else None
    if made not in _OTHERS or node.outputs[0].is_graph_output():
        return
    if node.op_type == "Cast":
        rewriter.set_attribute(node, "to", int(_FLOAT))
    if node.op_type == "ConstantOfShape":
        array: Array = node.attributes["value"].as_tensor().numpy()
        rewriter.set_attribute(node, "value", ir.tensor(_to_float32(array)))


def _to_float32(array: Array) -> Array:
    largest = float(np.finfo(np.float32).max)
    wide: Array = array.astype(np.float64)
    clipped: Array = np.where(np.isfinite(wide), np.clip(wide, -largest, largest), wide)
    return clipped.astype(np.float32)
