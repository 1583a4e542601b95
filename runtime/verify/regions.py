"""Teacher-forced comparison: each folded region alone, fed with the original's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.walk import iterate_graphs, nested_graphs
from onnxfold.runtime.session import REFERENCE, Session, SessionConfig

RECODED_SUFFIX = "_u8"
"""A value named so holds, as uint8, the int8 codes of the value without the suffix, plus 128."""

_RECODING_SHIFT = 128


@dataclass(frozen=True)
class RegionResult:
    """How one region compares over all feeds.

    Attributes:
        name: The value the region computes.
        elements: How many numbers were compared.
        mismatches: How many differ: codes at all, reals by more than rounding.
        largest: The largest difference: in codes where ``quantized``, else relative to the
            largest real number.
        quantized: Whether the value holds codes, or real numbers dequantized from them.
    """

    name: str
    elements: int
    mismatches: int
    largest: float
    quantized: bool

    @property
    def rate(self) -> float:
        """Share of mismatching numbers."""
        return self.mismatches / self.elements if self.elements else 0.0


def check_regions(
    before: ir.Model,
    after: ir.Model,
    feeds: Iterable[Mapping[str, Array]],
    *,
    config: SessionConfig = REFERENCE,
    real_tolerance: float = 1e-5,
) -> tuple[RegionResult, ...]:
    """Compare every value both models have by name, each region fed with the original's values.

    A region is what lies between one shared value and the shared values nearest upstream, so a
    difference is charged to the op that makes it and never to what amplifies it. Only the main
    graph is looked at.

    Args:
        before: The original.
        after: The rewritten model, whose passes kept the names of the tensors at the borders.
        feeds: Inputs of the original.
        config: How the regions of ``after`` run; the original always runs as reference.
        real_tolerance: Allowed difference of real numbers, relative to the largest of the tensor.

    Raises:
        ExecutionError: A model or region does not run.
    """
    names = _shared_names(before, after)
    original = Session(_with_outputs(before, sorted(set(names.values()))), REFERENCE)
    targets = _targets(after, names)
    steps = {name: _code_step(after, name) for name in targets}
    totals = {name: RegionResult(name, 0, 0, 0.0, quantized=True) for name in targets}
    sessions: dict[str, Session] = {}
    for feed in feeds:
        values = {**feed, **original.run(feed)}
        shared = {name: _value(values, name, names) for name in names}
        for name in targets:
            if name not in sessions:
                sessions[name] = Session(_region(after, name, shared), config)
            session = sessions[name]
            (got,) = session.run({spec.name: shared[spec.name] for spec in session.inputs}).values()
            totals[name] = _add(totals[name], shared[name], got, steps[name], real_tolerance)
    return tuple(totals.values())


def _shared_names(before: ir.Model, after: ir.Model) -> dict[str, str]:
    """Value names of ``after`` with the name in ``before`` of what they stand for."""
    known = {value.name: value.dtype for value in _values(before)}
    shared: dict[str, str] = {}
    for value in _values(after):
        name = value.name or ""
        source = name.removesuffix(RECODED_SUFFIX)
        if name in known and _same(known[name], value.dtype):
            shared[name] = name
        elif source != name and known.get(source, ir.DataType.FLOAT) in (ir.DataType.INT8, None):
            shared[name] = source
    return shared


def _same(first: ir.DataType | None, second: ir.DataType | None) -> bool:
    return first is None or second is None or first == second


def _values(model: ir.Model) -> list[ir.Value]:
    results = [output for node in model.graph for output in node.outputs]
    return [*(each for each in model.graph.inputs), *(each for each in results if each.name)]


def _with_outputs(model: ir.Model, names: Sequence[str]) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    inputs = {each.name for each in proto.graph.input}
    present = {each.name for each in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in present | inputs
    )
    return proto


def _targets(after: ir.Model, names: Mapping[str, str]) -> list[str]:
    return [
        output.name
        for node in after.graph
        for output in node.outputs
        if output.name in names and output.name
    ]


def _region(after: ir.Model, name: str, borders: Mapping[str, Array]) -> onnx.ModelProto:
    """The part of ``after`` between ``name`` and the nearest values in ``borders``."""
    by_name = {output.name: node for node in after.graph for output in node.outputs}
    nodes: set[ir.Node] = set()
    inputs: set[str] = set()
    open_nodes = [by_name[name]]
    while open_nodes:
        node = open_nodes.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for value in _reads(node, after.graph):
            if value.is_initializer():
                continue
            if value.name is not None and value.name in borders:
                inputs.add(value.name)
            else:
                open_nodes.append(by_name[value.name])
    used = {value.name for node in nodes for value in _reads(node, after.graph)}
    proto = ir.to_proto(after)
    kept = {output.name for node in nodes for output in node.outputs if output.name}
    region = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    region.functions.extend(proto.functions)
    region.graph.name = f"region_{name}"
    region.graph.node.extend(node for node in proto.graph.node if kept.intersection(node.output))
    region.graph.initializer.extend(t for t in proto.graph.initializer if t.name in used)
    for border in sorted(inputs):
        dtype = ir.DataType.from_numpy(borders[border].dtype)
        region.graph.input.append(_open_info(border, dtype))
    region.graph.output.append(onnx.ValueInfoProto(name=name))
    return region


def _reads(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """The values of ``graph`` that ``node`` reads, those its bodies capture included."""
    inner = [
        value
        for body in iterate_graphs(node)
        for each in (body, *nested_graphs(body))
        for inner_node in each
        for value in inner_node.inputs
    ]
    captured = [each for body in iterate_graphs(node) for each in body.outputs]
    reads = [*node.inputs, *inner, *captured]
    return [value for value in reads if value is not None and value.graph is graph]


def _open_info(name: str, dtype: ir.DataType) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    info.type.tensor_type.elem_type = int(dtype)
    return info


def _value(values: Mapping[str, Array], name: str, names: Mapping[str, str]) -> Array:
    source = names[name]
    array = values[source]
    if source == name:
        return array
    return (array.astype(np.int16) + _RECODING_SHIFT).astype(np.uint8)


def _code_step(after: ir.Model, name: str) -> float | None:
    """The real number one code of ``name`` stands for; None where it is not dequantized."""
    producer = next(each for each in _values(after) if each.name == name).producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = constant_array(producer.inputs[1])
    return None if scale is None or scale.size != 1 else float(scale.reshape(()))


def _add(
    total: RegionResult, want: Array, got: Array, step: float | None, real_tolerance: float
) -> RegionResult:
    if want.dtype.kind in "iu":
        step = 1.0
    difference = np.abs(want.astype(np.float64) - got.astype(np.float64))
    if step is None:
        difference = difference / (float(np.max(np.abs(want), initial=0)) or 1.0)
        wrong = ~(difference <= real_tolerance)
    else:
        difference = np.rint(difference / step)
        wrong = ~(difference == 0)
    return RegionResult(
        total.name,
        total.elements + want.size,
        total.mismatches + int(np.count_nonzero(wrong)),
        max(total.largest, float(np.max(difference, initial=0))),
        quantized=step is not None,
    )
