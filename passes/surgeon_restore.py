"""Gives back to a model what a trip through onnx-graphsurgeon lost, matched by name.

graphsurgeon 0.6 drops metadata, doc strings, denotations, quantization annotations, types inside
functions, unused initializers, and inputs that have a default value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx
import onnx_ir as ir

from onnxfold.passes.walk import iterate_graphs


def tidy(model: onnx.ModelProto, constants: Collection[str]) -> None:
    """Undo what graphsurgeon did: constants copied or moved into bodies, empty names.

    Args:
        model: What graphsurgeon exported; changed in place.
        constants: Names of the initializers of the original main graph.
    """
    _hoist_constants(model.graph, frozenset(constants))
    _tidy_graph(model.graph, frozenset())
    for function in model.functions:
        for body in _tidy_nodes(function.node):
            _tidy_graph(body, frozenset())


def _hoist_constants(main: onnx.GraphProto, constants: frozenset[str]) -> None:
    """Move back to the main graph what graphsurgeon moved into the bodies that capture it."""
    present = {tensor.name for tensor in main.initializer}
    bodies = list(_tidy_nodes(main.node))
    while bodies:
        body = bodies.pop()
        bodies.extend(_tidy_nodes(body.node))
        for tensor in body.initializer:
            if tensor.name in constants and tensor.name not in present:
                present.add(tensor.name)
                main.initializer.append(tensor)


def _tidy_graph(graph: onnx.GraphProto, visible: frozenset[str]) -> None:
    own = [tensor for tensor in graph.initializer if tensor.name not in visible]
    del graph.initializer[:]
    graph.initializer.extend(own)
    names = {tensor.name for tensor in graph.initializer}
    names |= {value.name for value in graph.input}
    names |= {output for node in graph.node for output in node.output}
    for body in _tidy_nodes(graph.node):
        _tidy_graph(body, visible | names)


def _tidy_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Clear the empty names of attribute tensors; yield the bodies of the nodes."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t") and not attribute.t.name:
                attribute.t.ClearField("name")
            if attribute.HasField("g"):
                yield attribute.g


def restore(model: ir.Model, original: ir.Model) -> None:
    """Copy onto ``model`` what it lost of ``original``, in place."""
    model.domain = original.domain
    model.model_version = original.model_version
    model.doc_string = original.doc_string
    model.metadata_props.update(original.metadata_props)
    for domain, version in original.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    _restore_graph(model.graph, original.graph)
    _restore_default_inputs(model.graph, original.graph)
    for identifier, function in model.functions.items():
        before = original.functions.get(identifier)
        if before is None:
            continue
        function.metadata_props.update(before.metadata_props)
        _restore_graph(function.graph, before.graph)


def _restore_graph(graph: ir.Graph, original: ir.Graph) -> None:
    graph.doc_string = original.doc_string
    graph.metadata_props.update(original.metadata_props)
    values_before = _values(original)
    for name, value in _values(graph).items():
        if name in values_before:
            _restore_value(value, values_before[name])
    nodes_before = _nodes(original)
    for key, node in _nodes(graph).items():
        if key in nodes_before:
            _restore_node(node, nodes_before[key])
    for name, value in original.initializers.items():
        unused = not value.uses() and not value.is_graph_input() and not value.is_graph_output()
        if unused and value.const_value is not None and name not in _values(graph):
            graph.initializers.add(_copy_of(value))
    _restore_order(graph, original)


def _restore_order(graph: ir.Graph, original: ir.Graph) -> None:
    """List initializers in their old order, new ones last."""
    rank = {name: index for index, name in enumerate(original.initializers)}
    ordered = sorted(
        graph.initializers.values(), key=lambda value: rank.get(value.name or "", len(rank))
    )
    if ordered == list(graph.initializers.values()):
        return
    graph.initializers.clear()
    for value in ordered:
        graph.initializers.add(value)


def _restore_node(node: ir.Node, original: ir.Node) -> None:
    node.metadata_props.update(original.metadata_props)
    node.doc_string = node.doc_string or original.doc_string
    bodies = zip(iterate_graphs(node), iterate_graphs(original), strict=False)
    for body, body_before in bodies:
        _restore_graph(body, body_before)


def _restore_value(value: ir.Value, original: ir.Value) -> None:
    value.metadata_props.update(original.metadata_props)
    value.meta.update(original.meta)
    value.doc_string = value.doc_string or original.doc_string
    if value.type is None or not isinstance(original.type, ir.TensorType | None):
        value.type, value.shape = original.type, original.shape
    elif value.type == original.type:
        # Equal but for the denotation, which comparison ignores.
        value.type = original.type
    if value.shape is None or value.shape == original.shape:
        value.shape = original.shape
    if value.const_value is not None and original.const_value is not None:
        value.const_value = _described(value.const_value, original.const_value)


def _described(tensor: ir.TensorProtocol, original: ir.TensorProtocol) -> ir.TensorProtocol:
    """``tensor`` with the metadata and doc string of ``original``, unless it has them."""
    if tensor.doc_string == original.doc_string:
        tensor.metadata_props.update(original.metadata_props)
        return tensor
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=original.doc_string,
        metadata_props=dict(original.metadata_props),
    )


def _restore_default_inputs(graph: ir.Graph, original: ir.Graph) -> None:
    """Make initializers that were inputs inputs again, at their old positions."""
    present = {value.name for value in graph.inputs}
    for index, before in enumerate(original.inputs):
        name = before.name or ""
        if name not in original.initializers or name in present:
            continue
        value = graph.initializers.get(name)
        if value is None and before.const_value is not None and name not in _values(graph):
            value = _copy_of(before)
            graph.initializers.add(value)
        if value is not None:
            graph.inputs.insert(min(index, len(graph.inputs)), value)


def _copy_of(initializer: ir.Value) -> ir.Value:
    return ir.Value(
        name=initializer.name,
        type=initializer.type,
        shape=initializer.shape,
        doc_string=initializer.doc_string,
        const_value=initializer.const_value,
        metadata_props=dict(initializer.metadata_props),
    )


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph for output in node.outputs]
    return {value.name: value for value in values if value.name}


def _nodes(graph: ir.Graph) -> dict[tuple[str, str], ir.Node]:
    """Nodes by operator and name; the first output stands in for a missing name."""
    return {
        (node.op_type, node.name or next((o.name or "" for o in node.outputs), "")): node
        for node in graph
    }
