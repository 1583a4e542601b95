"""Which operators are quantized, and which activations therefore get a scale."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear import LINEAR_OPS
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.roles import (
    ROLES,
    Role,
    constant_operand_indices,
    operand_indices,
    role_of,
)
from onnxfold.passes.quantize.units import Unit, find_units, float32_values, keep_regions
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import all_nodes, nested_graphs


@dataclass(frozen=True)
class PlacementOptions:
    """What the user selected.

    Attributes:
        op_types: Operators that may be quantized; empty means all that can be.
        skip: Names of nodes to leave in float (of their first output where they have no name).
        only: Names of the linear nodes to quantize; empty means all.
    """

    op_types: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Group:
    """Activations that share one scale and zero point, because operators only move them.

    Attributes:
        values: The activations, each to get a Q/DQ pair.
        observed: Those whose ranges, united, are the group's: the ones that are computed.
        constants: Constants that join in (Concat, the value of Pad).
    """

    values: tuple[ir.Value, ...]
    observed: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A linear operator that stays in float, and why."""

    node: ir.Node
    reason: str
    advice: str = ""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where quantization goes in a model's main graph.

    Attributes:
        units: The operators to quantize, in the order of the graph.
        groups: The activations to quantize, in the order of the graph.
        left_out: The linear operators that stay in float.
    """

    units: tuple[Unit, ...]
    groups: tuple[Group, ...]
    left_out: tuple[LeftOut, ...]

    @classmethod
    def of(
        cls,
        model: ir.Model,
        options: PlacementOptions,
        ranges: Collection[str] | None = None,
    ) -> Placement:
        """Decide for ``model``.

        Args:
            model: A float model; types of intermediate values help, but need not be there.
            options: The user's selection.
            ranges: Names of the tensors whose range is known; None means all.

        Raises:
            UsageError: An option names an operator or a node that is not there.
        """
        _check(model, options)
        allowed, left_out = _select(model, options)
        while True:
            units = keep_regions(find_units(model.graph, allowed))
            groups = _groups(units)
            if ranges is not None:
                groups = tuple(_with_known_sources(group, ranges) for group in groups)
            unknown = _without_range(groups, ranges)
            if not unknown:
                break
            for unit in units:
                missing = next((v for v in _touched(unit) if v in unknown), None)
                if missing is None:
                    continue
                allowed.discard(unit.node)
                if unit.role is Role.LINEAR:
                    left_out[unit.node] = LeftOut(
                        unit.node,
                        f"there is no calibration range for tensor '{unknown[missing].name}'",
                        "calibrate this very model, with data that reaches the tensor",
                    )
        return cls(units, groups, tuple(left_out.values()))


def tensors_to_observe(model: ir.Model, options: PlacementOptions) -> tuple[str, ...]:
    """Names of the tensors whose ranges ``insert-qdq`` will need, in the order of the graph."""
    groups = Placement.of(model, options).groups
    return tuple(dict.fromkeys(value.name or "" for each in groups for value in each.observed))


def _check(model: ir.Model, options: PlacementOptions) -> None:
    for op_type in options.op_types:
        if op_type not in ROLES:
            hint = did_you_mean(op_type, ROLES)
            raise UsageError(f"op-types: '{op_type}' cannot be quantized{hint}")
    if not options.skip and not options.only:
        return
    names = {node_name(node) for node in all_nodes(model)}
    for name in options.skip + options.only:
        if name not in names:
            raise UsageError(f"the model has no node '{name}'{did_you_mean(name, names)}")


def _select(
    model: ir.Model, options: PlacementOptions
) -> tuple[set[ir.Node], dict[ir.Node, LeftOut]]:
    """The nodes of the main graph that may be quantized, and the linear ones that may not."""
    allowed: set[ir.Node] = set()
    left_out: dict[ir.Node, LeftOut] = {}
    float32 = float32_values(model.graph)
    for node in model.graph:
        obstacle = _obstacle(node, options, float32)
        if obstacle is None:
            allowed.add(node)
        elif node.op_type in LINEAR_OPS and not node.domain:
            left_out[node] = LeftOut(node, *obstacle)
    for node, where, advice in _nodes_elsewhere(model):
        if node.op_type in LINEAR_OPS and not node.domain:
            left_out[node] = LeftOut(node, f"it is inside {where}", advice)
    return allowed, left_out


def _obstacle(
    node: ir.Node, options: PlacementOptions, float32: Collection[ir.Value]
) -> tuple[str, str] | None:
    """Why ``node`` must stay in float, and what to do about it; None where it need not."""
    if options.op_types and node.op_type not in options.op_types:
        return "the option op-types leaves it out", ""
    if node_name(node) in options.skip:
        return "the option skip names it", ""
    if options.only and node.op_type in LINEAR_OPS and node_name(node) not in options.only:
        return "the option only does not name it", ""
    if role_of(node) is None:
        return "all of its operands are constants", "run fold-constants first"
    operands = [node.inputs[index] for index in operand_indices(node)]
    if any(value not in float32 for value in operands):
        dtype = next((v.dtype for v in operands if v is not None and v not in float32), None)
        if dtype is None:
            return "the type of its data is not known", "run infer-shapes first"
        return f"its data is {dtype.name.lower()}, not float32", "convert the model to float32"
    is_convolution = node.op_type in ("Conv", "ConvTranspose")
    if is_convolution and constant_tensor(node.inputs[1]) is None:
        return "its weights are computed at run time", "make the weights constant"
    return None


def _nodes_elsewhere(model: ir.Model) -> Iterable[tuple[ir.Node, str, str]]:
    for body in nested_graphs(model.graph):
        for node in body:
            yield node, "the body of an If, Loop or Scan", ""
    for function in model.functions.values():
        where = f"the local function '{function.name}'"
        for graph in (function.graph, *nested_graphs(function.graph)):
            for node in graph:
                yield node, where, "inline the function"


def _touched(unit: Unit) -> tuple[ir.Value, ...]:
    return unit.operands + unit.outputs


def _without_range(
    groups: Sequence[Group], ranges: Collection[str] | None
) -> dict[ir.Value, ir.Value]:
    """The values that cannot be quantized, each with the tensor whose range is not known."""
    if ranges is None:
        return {}
    unknown: dict[ir.Value, ir.Value] = {}
    for group in groups:
        missing = next((each for each in group.observed if each.name not in ranges), None)
        if missing is not None:
            unknown.update(dict.fromkeys(group.values, missing))
    return unknown


def _with_known_sources(group: Group, ranges: Collection[str]) -> Group:
    """``group``, observed where values come from instead of behind operators that move them.

    So ranges that were taken for all operators serve any selection of them.
    """
    observed: dict[ir.Value, None] = {}
    constants = dict.fromkeys(group.constants)
    pending = list(group.observed)
    while pending:
        value = pending.pop()
        producer = value.producer()
        if value.name in ranges or producer is None or role_of(producer) is not Role.TIED:
            observed[value] = None
            continue
        constants.update(dict.fromkeys(_tied_constants(producer)))
        inputs = (producer.inputs[index] for index in operand_indices(producer))
        pending += [each for each in inputs if each is not None and each not in observed]
    return Group(group.values, tuple(observed), tuple(constants))


def _quantized_values(units: Sequence[Unit]) -> dict[ir.Value, None]:
    """The activations that get a Q/DQ pair, in the order of the graph."""
    values: dict[ir.Value, None] = {}
    for unit in units:
        values.update(dict.fromkeys(unit.operands))
        # A convolution without a quantized output has no fast integer kernel, unlike MatMul and
        # Gemm; an operator that only moves codes has nothing else to put out.
        if unit.role is Role.TIED or unit.node.op_type in ("Conv", "ConvTranspose"):
            values.update(dict.fromkeys(unit.outputs))
    return values


def _groups(units: Sequence[Unit]) -> tuple[Group, ...]:
    values = _quantized_values(units)
    leader = {value: value for value in values}
    moved: set[ir.Value] = set()
    constants: dict[ir.Value, list[ir.Value]] = {value: [] for value in values}
    for unit in units:
        if unit.role is not Role.TIED:
            continue
        moved.update(unit.outputs)
        first = unit.operands[0]
        constants[first] += _tied_constants(unit.node)
        for value in (*unit.operands[1:], *unit.outputs):
            _unite(leader, first, value)
    members: dict[ir.Value, list[ir.Value]] = {}
    for value in values:
        members.setdefault(_leader(leader, value), []).append(value)
    return tuple(
        Group(
            tuple(group),
            tuple(value for value in group if value not in moved),
            tuple(each for value in group for each in constants[value]),
        )
        for group in members.values()
    )


def _tied_constants(node: ir.Node) -> list[ir.Value]:
    indices = (2,) if node.op_type == "Pad" else constant_operand_indices(node)
    values = [node.inputs[index] for index in indices if index < len(node.inputs)]
    return [value for value in values if value is not None]


def _leader(leader: Mapping[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    while leader[value] is not value:
        value = leader[value]
    return value


def _unite(leader: dict[ir.Value, ir.Value], first: ir.Value, second: ir.Value) -> None:
    root, other = _leader(leader, first), _leader(leader, second)
    leader[other] = root
    # Point both at the root, so that chains stay short.
    leader[first] = leader[second] = root
