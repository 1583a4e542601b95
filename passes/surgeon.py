"""The bridge to and from onnx-graphsurgeon, and the pass that runs a user's own function on it.

The only module that imports onnx_graphsurgeon. It hands out copies, refuses models holding what
graphsurgeon would lose for good, and restores the rest on the way back.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.provenance import PASS_KEY
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.script import ScriptReference
from onnxfold.passes.serialization import to_proto, with_embedded_tensors
from onnxfold.passes.surgeon_restore import restore, tidy
from onnxfold.passes.walk import all_graphs, all_nodes, label

GsGraph: TypeAlias = Any
"""``onnx_graphsurgeon.Graph``, which ships no types."""

_LOST_ATTRIBUTES = frozenset(
    {
        ir.AttributeType.TENSORS,
        ir.AttributeType.GRAPHS,
        ir.AttributeType.TYPE_PROTO,
        ir.AttributeType.TYPE_PROTOS,
        ir.AttributeType.SPARSE_TENSOR,
        ir.AttributeType.SPARSE_TENSORS,
    }
)
_LIST_ATTRIBUTES = frozenset(
    {ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS}
)
_USER_DEFINED = 2  # numpy's mark of dtypes that it does not define itself, such as ml_dtypes'


@dataclass(frozen=True, kw_only=True)
class Surgeon(Pass):
    """Run a user's function ``fn(graph: onnx_graphsurgeon.Graph) -> None | Graph`` as a pass.

    The function edits the graph it is given, or returns another. Everything the verifier and the
    gates check of other passes is checked of it too.

    Attributes:
        script: The function, as ``file.py:function``.
        contract: What the function promises; decides which gate it has to pass.
    """

    name: ClassVar[str] = "surgeon"
    script: ScriptReference
    # For all other passes the contract is a fact about the class; here the user states it.
    contract: Contract = Contract.EXACT  # pyright: ignore[reportIncompatibleVariableOverride]

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Put what the function makes of ``model`` in its place.

        Raises:
            UsageError: The script is missing or raises, or the model holds what graphsurgeon loses.
            PassError: graphsurgeon cannot export what the function left.
        """
        graph = to_graphsurgeon(model)
        returned = self.script.call(graph)
        result = graph if returned is None else returned
        if not isinstance(result, _graphsurgeon().Graph):
            raise UsageError(
                f"{self.script.to_text()} returned {type(result).__name__}; "
                "it must return None or an onnx_graphsurgeon.Graph"
            )
        replacement = from_graphsurgeon(result, model)
        before = to_proto(with_embedded_tensors(model))
        tidy(before, ())
        if to_proto(replacement) == before:
            return
        _mark_new_nodes(replacement, model)
        with rewriter.step(self.script.function):
            rewriter.replace_model(replacement)


def to_graphsurgeon(model: ir.Model) -> GsGraph:
    """A copy of ``model`` as an ``onnx_graphsurgeon.Graph``; external tensors are read.

    Raises:
        UsageError: ``model`` holds what graphsurgeon loses and cannot be restored; names it.
    """
    problem = next(_unsupported(model), "")
    if problem:
        raise UsageError(f"onnx-graphsurgeon would lose {problem}")
    gs = _graphsurgeon()
    try:
        with _quiet(gs):
            return gs.import_onnx(to_proto(with_embedded_tensors(model)))
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise UsageError(f"onnx-graphsurgeon cannot read the model: {message}") from error


def from_graphsurgeon(graph: GsGraph, original: ir.Model) -> ir.Model:
    """``graph`` as a model, with everything graphsurgeon lost of ``original`` restored.

    Nodes and values that kept their names get back metadata, doc strings, denotations and
    annotations; unused initializers and inputs with a default value come back.

    Raises:
        PassError: graphsurgeon cannot export the graph.
    """
    gs = _graphsurgeon()
    try:
        with _quiet(gs):
            for constant in _constants(gs, graph):
                _repack(gs, constant)
            proto: onnx.ModelProto = gs.export_onnx(graph)
            tidy(proto, original.graph.initializers)
            proto.ir_version = original.ir_version
            model = ir.from_proto(proto)
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise PassError(f"onnx-graphsurgeon cannot export the graph: {message}") from error
    if "" in model.opset_imports and graph.opset is not None:
        model.opset_imports[""] = int(graph.opset)
    restore(model, original)
    return model


def new_graph(name: str, opset: int) -> GsGraph:
    """An empty ``onnx_graphsurgeon.Graph``, for what is built from nothing."""
    return _graphsurgeon().Graph(name=name, opset=opset)


def new_variable(name: str, dtype: int, shape: Sequence[int | str | None]) -> Any:
    """An ``onnx_graphsurgeon.Variable``; ``dtype`` is an ONNX data type."""
    return _graphsurgeon().Variable(name=name, dtype=dtype, shape=list(shape))


def new_constant(name: str, values: Array) -> Any:
    """An ``onnx_graphsurgeon.Constant``."""
    return _graphsurgeon().Constant(name=name, values=values)


def built_proto(graph: GsGraph) -> onnx.ModelProto:
    """What was built from ``new_graph`` as a model, without what its outputs do not need.

    Raises:
        PassError: graphsurgeon cannot export the graph.
    """
    gs = _graphsurgeon()
    try:
        with _quiet(gs):
            graph.cleanup(remove_unused_graph_inputs=False)
            return gs.export_onnx(graph, do_type_check=False)
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise PassError(f"onnx-graphsurgeon cannot export the graph: {message}") from error


def _unsupported(model: ir.Model) -> Iterator[str]:
    """What cannot be restored, in words."""
    if model.device_configurations:
        yield "the model's device configurations"
    for domain, name, overload in model.functions:
        if overload:
            yield f"the overload '{overload}' of function {domain}.{name}"
    for graph in all_graphs(model):
        yield from (
            f"the type {value.type} of '{value.name}'"
            for value in _typed_values(graph)
            if not _is_supported_type(value.type)
        )
    for node in all_nodes(model):
        for name, attribute in node.attributes.items():
            if attribute.type in _LOST_ATTRIBUTES:
                yield f"the attribute '{name}' ({attribute.type.name}) of {label(node)}"
            is_list = attribute.type in _LIST_ATTRIBUTES and not attribute.is_ref()
            if is_list and not attribute.value:
                yield f"the empty list in the attribute '{name}' of {label(node)}"


def _typed_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _is_supported_type(type_: ir.TypeProtocol | None) -> bool:
    if isinstance(type_, ir.SequenceType):
        type_ = type_.elem_type
    return type_ is None or isinstance(type_, ir.TensorType)


def _graphsurgeon() -> Any:
    return importlib.import_module("onnx_graphsurgeon")


def _quiet(gs: Any) -> Any:
    """Silence graphsurgeon's log: it goes to standard output, which belongs to results."""
    logger = gs.logger.G_LOGGER
    return logger.suppress(logger.CRITICAL)


def _constants(gs: Any, graph: GsGraph) -> Iterator[Any]:
    """Every constant of the graph, its bodies and its functions."""
    for each in (graph, *getattr(graph, "functions", ())):
        for inner in (each, *each.subgraphs(recursive=True)):
            tensors = [*inner.tensors().values()]
            tensors += [value for node in inner.nodes for value in node.attrs.values()]
            yield from (tensor for tensor in tensors if isinstance(tensor, gs.Constant))


def _repack(gs: Any, constant: Any) -> None:
    """Pack loaded constants of types numpy has not: graphsurgeon writes 4-bit ones unpacked."""
    values = constant._values
    if not isinstance(values, np.ndarray) or constant._export_dtype is not None:
        return
    array = cast(Array, values)
    if array.dtype.isbuiltin == _USER_DEFINED:
        constant.values = gs.ir.tensor.LazyValues(numpy_helper.from_array(array, constant.name))


def _mark_new_nodes(model: ir.Model, original: ir.Model) -> None:
    """Record the pass in every node whose name or operator the original does not have."""
    before = {(node.op_type, node.name) for node in all_nodes(original)}
    for node in all_nodes(model):
        if (node.op_type, node.name) not in before:
            node.metadata_props.setdefault(PASS_KEY, Surgeon.name)
