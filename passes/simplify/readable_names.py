"""readable-names: call tensors and nodes after the layers that they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.layers import layer_of, path_of
from onnxfold.passes.rewriter import Rewriter

_CALLS = re.compile(r"^/?(?:(?:Stateful)?PartitionedCall(?:_\d+)?/)+")
_PORT = re.compile(r":(\d+)$")
_MADE_UP = re.compile(
    r"__\d+|ReadVariableOp|merged_input|(?:^|/)(?:const|scale|zero_point|new_shape)_|_fold_opt"
    r"|^(?:node_)?[A-Z]\w*_\d+$|^val_\d+$|^\d+$|^(?:onnx::|arith\.|tfl\.)"
    r"|^(?:Stateful)?PartitionedCall(?::|$)"
)
"""What exporters number, or call after how a framework reads a variable."""
_LEGACY_TORCH = re.compile(r"_output_\d+$")
_QUANTIZED = re.compile(r"_(?:prequant|dequant|quantize)$")
_COUNTER = re.compile(r"_\d+$")
_ROLES: Mapping[tuple[str, int], str] = {
    ("Add", 0): "bias",
    ("Add", 1): "bias",
    ("Conv", 1): "weight",
    ("Conv", 2): "bias",
    ("ConvTranspose", 1): "weight",
    ("ConvTranspose", 2): "bias",
    ("DequantizeLinear", 0): "codes",
    ("DequantizeLinear", 1): "scale",
    ("DequantizeLinear", 2): "zero_point",
    ("Gather", 0): "table",
    ("Gemm", 1): "weight",
    ("Gemm", 2): "bias",
    ("MatMul", 0): "weight",
    ("MatMul", 1): "weight",
    ("QuantizeLinear", 1): "scale",
    ("QuantizeLinear", 2): "zero_point",
}
"""What a constant is to the operator that reads it, where ONNX only has a letter for it."""


@dataclass(frozen=True)
class ReadableNames(Pass):
    """Name what a model computes inside after the framework's layers: ``conv1/Relu``.

    Where an exporter has left its layers (in the nodes' metadata), they give the names; elsewhere
    the scopes in the names that tensors have, without what frameworks put around them:
    ``StatefulPartitionedCall/model/conv1/BiasAdd:0`` becomes ``conv1/BiasAdd``. A name that an
    exporter has made up by counting becomes the layer and the operator. Constants are called after
    what they are to the operator that reads them. Inputs and outputs of the model keep their names,
    and so do names that are readable. Nodes are called like the first tensor that they compute.
    """

    name: ClassVar[str] = "readable-names"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Rename within the main graph."""
        names = _Namer(model)
        wanted = [(value, name) for value, name in names.wanted() if value.name != name]
        ends = [
            (node, names.of_computed(node.outputs[0]))
            for node in model.graph
            if node.outputs[0].is_graph_output()
        ]
        ends = [(node, name) for node, name in ends if not _same_scope(name, node.name or "")]
        if not wanted and not ends:
            return
        with rewriter.step("readable-names"):
            if wanted:
                rewriter.settle_names(wanted)
            for node, name in ends:
                rewriter.name_node(node, name)


class _Namer:
    """Knows the scopes of a model: which one surrounds all, and which layer each node is in."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 1)
        labelled = [node for node in self._graph if layer_of(node)] or list(self._graph)
        self._layers_root = _root([_plain(path_of(layer_of(node))) for node in labelled])
        tensors = (value.name or "" for node in labelled for value in node.outputs)
        self._root = _root([_plain(name) for name in tensors])
        self._paths: dict[ir.Node, str] = {}
        for node in self._graph:
            self._paths[node] = self._own_path(node)
        self._inherit()

    def wanted(self) -> Iterator[tuple[ir.Value, str]]:
        """Values of the main graph and the names that they should have; who comes first chooses."""
        inner = [value for value in self._computed() if not value.is_graph_output()]
        # Where two want the same name, it belongs to the one that had it in the framework.
        for value in sorted(inner, key=lambda each: _is_made_up(each.name or "")):
            yield value, self.of_computed(value)
        for value in self._graph.initializers.values():
            if not value.is_graph_input() and not value.is_graph_output():
                yield value, self._of_constant(value)

    def _computed(self) -> list[ir.Value]:
        return [value for node in self._graph for value in node.outputs if value.name]

    def _own_path(self, node: ir.Node) -> str:
        """The layer that a node is in: recorded, or the scope of its first tensor."""
        layer = path_of(layer_of(node))
        if layer and not _is_made_up(layer):
            return _without(self._layers_root, _plain(layer))
        return _without(self._root, _plain(node.outputs[0].name or "")).rpartition("/")[0]

    def _inherit(self) -> None:
        """Nodes without a layer are in that of what they read first; or of their only reader."""
        nodes = [node for node in self._graph if _is_made_up(node.outputs[0].name or "")]
        for node in nodes:
            makers = (value.producer() for value in node.inputs if value is not None)
            found = (self._paths.get(each, "") for each in makers if each is not None)
            self._paths[node] = self._paths[node] or next(found, "")
        for node in reversed(nodes):
            readers = {use.node for value in node.outputs for use in value.uses()}
            paths = {self._paths.get(each, "") for each in readers}
            if not self._paths[node] and len(paths) == 1:
                self._paths[node] = paths.pop()

    def of_computed(self, value: ir.Value) -> str:
        """What a computed value should be called, or the node of one that keeps its name."""
        node = value.producer()
        if node is None:
            return value.name or ""
        path = self._paths[node]
        name = _without(self._root, _plain(value.name or ""))
        if value.is_graph_output() or _is_made_up(value.name or ""):
            if not path or path.rpartition("/")[2] == node.op_type:
                return path or node.op_type
            return f"{path}/{node.op_type}"
        if not path or name == path or name.startswith((f"{path}/", f"{path}_prequant")):
            return name
        return f"{path}/{_within(name, path) or node.op_type}"

    def _of_constant(self, value: ir.Value) -> str:
        name = _without(self._root, _plain(value.name or ""))
        uses = [(use.node, use.idx) for use in value.uses()]
        paths = {self._paths.get(node, "") for node, _ in uses}
        path = paths.pop() if len(paths) == 1 else ""
        if not uses or not _is_made_up(value.name or ""):
            inner = _within(name, path) if path else ""
            return f"{path}/{inner}" if inner else name
        roles = {self._role(node, index) for node, index in uses}
        role = roles.pop() if len(roles) == 1 else "constant"
        return f"{path}/{role}" if path else role

    def _role(self, node: ir.Node, index: int) -> str:
        """What a constant is to a node: ``weight``, ``axes``, ``shape``."""
        known = _ROLES.get((node.op_type, index))
        if known is not None or node.domain:
            return known or "constant"
        if not onnx.defs.has(node.op_type, self._opset, node.domain):
            return "constant"
        inputs = onnx.defs.get_schema(node.op_type, self._opset, node.domain).inputs
        name = inputs[min(index, len(inputs) - 1)].name
        return name if len(name) > 1 and name.islower() else "constant"


def _plain(name: str) -> str:
    """A name without what frameworks put around it."""
    name = name.partition(";")[0] + (_QUANTIZED.search(name) or [""])[0] if ";" in name else name
    name = _CALLS.sub("", name)
    if name.startswith("/"):
        name = _LEGACY_TORCH.sub("", name[1:])
    port = _PORT.search(name)
    if port is not None:
        name = name[: port.start()] + (f"_{port[1]}" if port[1] != "0" else "")
    return name


def _root(names: list[str]) -> str:
    """The scope that is around several others, and all there is; empty where there is none."""
    scopes = {tuple(name.split("/")[:2]) for name in names if name.count("/") > 1}
    outermost = {name.partition("/")[0] for name in names if "/" in name}
    return outermost.pop() if len(outermost) == 1 and len(scopes) > 1 else ""


def _without(root: str, name: str) -> str:
    return name.removeprefix(f"{root}/") if root else name


def _is_made_up(name: str) -> bool:
    return _MADE_UP.search(name) is not None


def _within(name: str, path: str) -> str:
    """What follows the scopes of ``path`` in ``name``, where they may have numbers behind them."""
    scopes, parts = path.split("/"), name.split("/")
    for start in range(len(parts) - len(scopes)):
        if all(_same_scope(*pair) for pair in zip(scopes, parts[start:], strict=False)):
            return "/".join(parts[start + len(scopes) :])
    return ""


def _same_scope(scope: str, part: str) -> bool:
    return part == scope or _COUNTER.sub("", part) == scope
