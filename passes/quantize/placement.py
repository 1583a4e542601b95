"""Which operators are quantized, and which activations therefore get a scale."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear import LINEAR_OPS
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.overrides import Overrides
from onnxfold.passes.quantize.roles import (
    ROLES,
    Role,
    constant_operand_indices,
    operand_indices,
    role_of,
)
from onnxfold.passes.quantize.schemes import Scheme
from onnxfold.passes.quantize.unit_types import Coded, coded_values, with_schemes
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
        overrides: Exceptions from the scheme.
        scheme: The types of all other operators' codes.
    """

    op_types: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    overrides: Overrides = field(default_factory=Overrides)
    scheme: Scheme = field(default_factory=Scheme)


@dataclass(frozen=True, eq=False)
class Group:
    """Activations that share one scale and zero point, because operators only move them.

    Attributes:
        values: The activations, each to get a Q/DQ pair.
        observed: Those whose ranges, united, are the group's: the ones that are computed.
        dtype: The type of their codes; one activation can be in groups of several types.
        constants: Constants that join in (Concat, the value of Pad).
    """

    values: tuple[ir.Value, ...]
    observed: tuple[ir.Value, ...]
    dtype: ir.DataType
    constants: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A linear operator that stays in float, and why."""

    node: ir.Node
    reason: str
    advice: str = ""


@dataclass(frozen=True, eq=False)
class Placement:
    """Where quantization goes in a model's main graph and the bodies in it.

    Attributes:
        units: The operators to quantize, in the order they run.
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
            units = with_schemes(
                keep_regions(find_units(model.graph, allowed)), options.overrides, options.scheme
            )
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
    options.overrides.check(model)
    if not options.skip and not options.only:
        return
    names = {node_name(node) for node in all_nodes(model)}
    for name in options.skip + options.only:
        if name not in names:
            raise UsageError(f"the model has no node '{name}'{did_you_mean(name, names)}")


def _select(
    model: ir.Model, options: PlacementOptions
) -> tuple[set[ir.Node], dict[ir.Node, LeftOut]]:
    """The nodes that may be quantized, and the linear ones that may not."""
    allowed: set[ir.Node] = set()
    left_out: dict[ir.Node, LeftOut] = {}
    float32 = float32_values(model.graph)
    for node in _nodes_of(model.graph):
        obstacle = _obstacle(node, options, float32)
        if obstacle is None:
            allowed.add(node)
        elif node.op_type in LINEAR_OPS and not node.domain:
            left_out[node] = LeftOut(node, *obstacle)
    for function in model.functions.values():
        where = f"it is inside the local function '{function.name}'"
        for node in _nodes_of(function.graph):
            if node.op_type in LINEAR_OPS and not node.domain:
                left_out[node] = LeftOut(node, where, "inline the function")
    return allowed, left_out


def _nodes_of(graph: ir.Graph) -> Iterator[ir.Node]:
    for each in (graph, *nested_graphs(graph)):
        yield from each


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
    if options.overrides.in_float(node):
        return "an override keeps it in float", ""
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
    return Group(group.values, tuple(observed), group.dtype, tuple(constants))


def _groups(units: Sequence[Unit]) -> tuple[Group, ...]:
    values = coded_values(units)
    leader = {each: each for each in values}
    moved: set[Coded] = set()
    constants: dict[Coded, list[ir.Value]] = {each: [] for each in values}
    for unit in units:
        if unit.role is not Role.TIED:
            continue
        dtype = unit.scheme.activation_type
        moved.update((value, dtype) for value in unit.outputs)
        first = unit.operands[0], dtype
        constants[first] += _tied_constants(unit.node)
        for value in (*unit.operands[1:], *unit.outputs):
            _unite(leader, first, (value, dtype))
    members: dict[Coded, list[Coded]] = {}
    for each in values:
        members.setdefault(_leader(leader, each), []).append(each)
    return tuple(
        Group(
            tuple(value for value, _ in group),
            tuple(value for value, dtype in group if (value, dtype) not in moved),
            group[0][1],
            tuple(constant for each in group for constant in constants[each]),
        )
        for group in members.values()
    )


def _tied_constants(node: ir.Node) -> list[ir.Value]:
    indices = (2,) if node.op_type == "Pad" else constant_operand_indices(node)
    values = [node.inputs[index] for index in indices if index < len(node.inputs)]
    return [value for value in values if value is not None]


def _leader(leader: Mapping[Coded, Coded], each: Coded) -> Coded:
    while leader[each] != each:
        each = leader[each]
    return each


def _unite(leader: dict[Coded, Coded], first: Coded, second: Coded) -> None:
    root, other = _leader(leader, first), _leader(leader, second)
    leader[other] = root
    # Point both at the root, so that chains stay short.
    leader[first] = leader[second] = root
