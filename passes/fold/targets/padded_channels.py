"""Channels padded to what ONNX Runtime's integer kernels take together, where nobody sees them.

Kernels compute 16 channels together and read 4; others go another way, or one by one. Where all
that writes and reads some channels is known, more of them cost less: they are computed from
weights of 0, and read with weights of 0, so that no result changes. Nanoseconds a pixel, one
thread (a kernel's data in rows, its result in columns):

    1x1    8    16    24    32           3x3    8    16    24    32
      3   9.8  10.3  13.2  17.1            3  26.1  26.4  31.3  35.1
      4   9.2   4.3   5.4   5.3            4  25.7  14.3  16.3  16.2
      8   9.4   4.5   5.8   5.8            8  30.5  16.3  21.1  21.0
     32   8.7   6.2   9.0   9.0           32  46.1  30.1  51.0  50.6

    3x3 depthwise of 8, 12, 16, 20, 24, 32, 40, 48 channels: 19, 45, 15, 47, 30, 19, 41, 24
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.costs import (
    CHANNELS_READ,
    CostTable,
    element_features,
    whole_channels,
)
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.convolution_channels import (
    QUANTIZED_CONVOLUTION,
    REAL_CONVOLUTION,
    add_inputs,
    add_outputs,
    channels_of,
    extend,
    group_of,
    integer_cost,
    is_convolution,
    pixels_of,
    resize_channels,
    weights_of,
)
from onnxfold.passes.fold.types import QUANTIZE
from onnxfold.passes.rewriter import Rewriter

PADDED_SUFFIX = "_padded"
"""Appended to the name of a value, it names the same value with more channels behind its own."""

_WORTH = 0.05
"""The share of the time that padding has to save: costs are fitted."""

_DATA = {
    "Clip": (0,),
    "MaxPool": (0,),
    "QLinearAdd": (0, 3),
    "QLinearConv": (0,),
    "QLinearLeakyRelu": (0,),
    "QLinearMul": (0, 3),
    "QLinearSigmoid": (0,),
    QUANTIZE: (0,),
}
"""Operators that may treat each channel for itself, with their inputs that have channels."""


@dataclass(eq=False)
class _Channels:
    """Values whose channels have to be padded together, and what touches them.

    Attributes:
        values: The values.
        writers: Convolutions that compute one of them from other channels.
        carriers: What computes one of them from others of them.
        readers: Convolutions that read one of them.
    """

    values: dict[ir.Value, None] = field(default_factory=dict[ir.Value, None])
    writers: list[ir.Node] = field(default_factory=list[ir.Node])
    carriers: list[ir.Node] = field(default_factory=list[ir.Node])
    readers: list[ir.Node] = field(default_factory=list[ir.Node])

    def count(self) -> int:
        """How many channels there are; 0 where values differ, or sizes are not known."""
        counts = {channels_of(each) for each in self.values}
        return counts.pop() if len(counts) == 1 else 0


def pad_channels(plan: Plan, rewriter: Rewriter, costs: CostTable) -> None:
    """Pad channels that nobody sees, wherever that is faster.

    Args:
        plan: The plan, carried out.
        rewriter: The gate.
        costs: What kernels cost.
    """
    for graph in plan.graphs:
        for channels in _unseen(graph):
            count = channels.count()
            wanted = _fastest(channels, count, costs) if count else 0
            if wanted != count:
                _pad(channels, wanted - count, rewriter)


def _unseen(graph: ir.Graph) -> Iterable[_Channels]:
    """All channels of ``graph`` of which every writer and reader is known."""
    groups: dict[ir.Value, _Channels] = {}
    seen: set[ir.Value] = set()
    for node in graph:
        reads = tuple(value for value in _data(node) if value is not None)
        if is_convolution(node) and group_of(node) == 1:
            _join(groups, node.outputs).writers.append(node)
            if node.op_type == REAL_CONVOLUTION:
                seen.update(reads)
            else:
                _join(groups, reads).readers.append(node)
        elif _is_carrier(node, reads):
            _join(groups, (*node.outputs, *reads)).carriers.append(node)
        else:
            seen.update(node.outputs)
            seen.update(value for value in node.inputs if value is not None)
    found = dict.fromkeys(groups.values())
    return [
        each for each in found if not any(_is_seen(value, graph, seen) for value in each.values)
    ]


def _join(groups: dict[ir.Value, _Channels], values: Sequence[ir.Value]) -> _Channels:
    """The group that holds all ``values``, joined from theirs."""
    known = list(dict.fromkeys(groups[value] for value in values if value in groups))
    joined = max(known, key=lambda each: len(each.values)) if known else _Channels()
    for other in known:
        if other is not joined:
            joined.values.update(other.values)
            joined.writers += other.writers
            joined.carriers += other.carriers
            joined.readers += other.readers
            groups.update(dict.fromkeys(other.values, joined))
    joined.values.update(dict.fromkeys(values))
    groups.update(dict.fromkeys(values, joined))
    return joined


def _is_seen(value: ir.Value, graph: ir.Graph, seen: set[ir.Value]) -> bool:
    """Whether something else would notice more channels."""
    if value in seen or value.is_graph_output() or value.producer() is None:
        return True
    return any(use.node.graph is not graph for use in value.uses())


def _data(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs that have channels."""
    places = (0,) if node.op_type == REAL_CONVOLUTION else _DATA.get(node.op_type, ())
    return [node.inputs[place] for place in places if place < len(node.inputs)]


def _is_carrier(node: ir.Node, reads: Sequence[ir.Value]) -> bool:
    """Whether each channel of the result depends on the same channel of the data alone."""
    if len(node.outputs) != 1 or not reads or len(reads) != len(_DATA.get(node.op_type, ())):
        return False
    count = channels_of(node.outputs[0])
    if count == 0 or any(channels_of(each) != count for each in reads):
        return False
    if node.op_type == QUANTIZED_CONVOLUTION:
        return is_convolution(node) and group_of(node) == count > 1
    return node.op_type != QUANTIZE or _quantizes_alike(node)


def _quantizes_alike(node: ir.Node) -> bool:
    """Whether all channels are rounded to one grid, of one scale or of one that is repeated."""
    for value in node.inputs[1:]:
        parameter = constant_array(value)
        if parameter is None or np.unique(parameter).size != 1:
            return False
        if parameter.ndim and node.attributes.get_int("axis", 1) != 1:
            return False
    return not node.attributes.get_int("block_size", 0)


def _fastest(channels: _Channels, count: int, costs: CostTable) -> int:
    """The number of channels that costs least; ``count`` where others save little."""
    in_fours = -(-count // CHANNELS_READ) * CHANNELS_READ
    cost = {each: _cost(channels, each, costs) for each in (count, in_fours, whole_channels(count))}
    best = min(cost, key=lambda each: cost[each])
    return best if cost[best] < (1 - _WORTH) * cost[count] else count


def _cost(channels: _Channels, count: int, costs: CostTable) -> float:
    """Microseconds of all that touches the channels, were there ``count`` of them."""
    writers, readers = set(channels.writers), set(channels.readers)
    cost = 0.0
    for node in dict.fromkeys((*channels.writers, *channels.carriers, *channels.readers)):
        if node.op_type == QUANTIZED_CONVOLUTION:
            outputs, inputs = weights_of(node).shape[:2]
            inputs = count if node in readers else inputs
            outputs = outputs if node in readers and node not in writers else count
            cost += integer_cost(node, inputs, outputs, costs)
        elif node.op_type != REAL_CONVOLUTION:  # it computes whole blocks in any case
            elements = pixels_of(node.outputs[0]) * count
            family = "float to codes" if node.op_type == QUANTIZE else "change of layout"
            cost += costs.cost(family, element_features(elements))
    return cost


def _pad(channels: _Channels, more: int, rewriter: Rewriter) -> None:
    """Add ``more`` channels."""
    for node in channels.writers:
        with rewriter.step("pad-channels", node):
            add_outputs(node, more, rewriter)
    for node in channels.carriers:
        with rewriter.step("pad-channels", node):
            _carry_more(node, more, rewriter)
    for node in channels.readers:
        with rewriter.step("pad-channels", node):
            add_inputs(node, more, rewriter)
    for value in channels.values:
        with rewriter.step("pad-channels", value.producer()):
            resize_channels(value, channels_of(value) + more, rewriter)
            rewriter.rename(value, f"{value.name}{PADDED_SUFFIX}")


def _carry_more(node: ir.Node, more: int, rewriter: Rewriter) -> None:
    if node.op_type == QUANTIZED_CONVOLUTION:
        add_outputs(node, more, rewriter)
        rewriter.set_attribute(node, "group", group_of(node) + more)
    elif node.op_type == QUANTIZE:
        for place in range(1, len(node.inputs)):
            parameter = constant_array(node.inputs[place])
            assert parameter is not None
            extend(node, place, 0, more, parameter.reshape(-1)[0], rewriter)
