"""Pass ``align-concat``: gives what a Concat joins the same range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.channel_affine import BiasedLinear, only_consumer
from onnxfold.passes.constants import Array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.linear_fold import refold, rounded, shift_folds, sinks
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.roles import ROLES, Role
from onnxfold.passes.rewriter import Rewriter

_TOLERANCE = 0.01
"""What is nearer than this to the range wanted stays as it is."""

_PASSING = ("Relu", "DepthToSpace")

Range = tuple[float, float]


@dataclass(frozen=True)
class AlignConcat(Pass):
    """Scale and shift what a Concat joins to the range of what it cannot change.

    The codes of all operands of a Concat share a scale and a zero point: where one is wider than
    the others, theirs are coarse. So an operand that a linear operator makes is brought into the
    range of those that none makes (an input of the network, a skip connection), by that operator's
    weights and bias; the linear operator that reads the Concat undoes it by its own. With a shift
    where no zero padding and no Relu lies between, else by a factor alone.

    Left alone: a Concat that anything else reads, and one of linear operators only. Ranges have to
    be measured anew afterwards.

    Attributes:
        ranges: What values the operands take, from ``onnxfold.runtime.calibrate``.
    """

    ranges: Ranges

    name: ClassVar[str] = "align-concat"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Align the main graph."""
        for node in list(model.graph):
            if node.op_type == "Concat" and not node.domain:
                _align(node, self.ranges, rewriter)


@dataclass(frozen=True, eq=False)
class _Operand:
    """One input of a Concat that a linear operator makes.

    Attributes:
        linear: The operator, with its bias.
        channels: Where its channels are among those of the Concat.
        range: What values it takes.
        shifts: Whether a shift passes on unchanged.
    """

    linear: BiasedLinear
    channels: slice
    range: Range
    shifts: bool

    def map_to(self, wanted: Range, *, shifts: bool) -> tuple[float, float]:
        """Factor and shift that bring the operand into a range."""
        (low, high), (least, most) = self.range, wanted
        if shifts and self.shifts:
            factor = (most - least) / (high - low)
            return factor, least - factor * low
        return max(abs(least), abs(most)) / max(abs(low), abs(high)), 0.0


def _align(concat: ir.Node, ranges: Mapping[str, Range], rewriter: Rewriter) -> None:
    reader = _reader(concat)
    if reader is None:
        return
    found = _operands(concat, reader, ranges)
    if found is None:
        return
    operands, wanted = found
    scale, shift = np.ones(reader.linear.in_channels), np.zeros(reader.linear.in_channels)
    shifts = shift_folds(reader, concat)
    changed: list[tuple[BiasedLinear, Array, Array]] = []
    for each in operands:
        factor, offset = each.map_to(wanted, shifts=shifts)
        if abs(factor - 1) < _TOLERANCE and abs(offset) < _TOLERANCE * max(map(abs, wanted)):
            continue
        linear = each.linear.linear
        scale[each.channels], shift[each.channels] = 1 / factor, -offset / factor
        weights = linear.scale_outputs(np.full(linear.out_channels, factor))
        changed.append((each.linear, weights, factor * each.linear.bias + offset))
    if not changed:
        return
    bias = reader.bias + reader.linear.response_to(shift) if shift.any() else reader.bias
    changed.append((reader, reader.linear.scale_inputs(scale), bias))
    if not all(_fits(*each) for each in changed):
        rewriter.remark(concat, "the weights around it would not fit their type")
        return
    with rewriter.step("align-operands", concat):
        for biased, weights, offsets in changed:
            rewriter.add_source(biased.linear.node)
            refold(rewriter, biased, weights, offsets)


def _reader(concat: ir.Node) -> BiasedLinear | None:
    """The only operator that reads the Concat, where it joins the channels of that one's data."""
    node = only_consumer(concat.outputs[0])
    linear = LinearOp.match(node)
    if linear is None or linear.bias_index is None or linear.data is not concat.outputs[0]:
        return None
    rank = len(linear.weight_shape)
    if concat.attributes.get_int("axis", 0) % rank != linear.data_channel_axis % rank:
        return None
    return BiasedLinear.around(linear)


def _operands(
    concat: ir.Node, reader: BiasedLinear, ranges: Mapping[str, Range]
) -> tuple[list[_Operand], Range] | None:
    """What can be changed, and the range of what cannot; None where either is missing."""
    values = [value for value in concat.inputs if value is not None]
    axis = reader.linear.data_channel_axis
    sizes = [_channels(value, axis) for value in values]
    if sizes.count(None) == 1:
        known = sum(size for size in sizes if size is not None)
        sizes[sizes.index(None)] = reader.linear.in_channels - known
    operands: list[_Operand] = []
    fixed: list[Range] = []
    first = 0
    for value, size in zip(values, sizes, strict=True):
        if size is None:
            return None
        operand = _operand(concat, value, slice(first, first + size), ranges)
        source = _source_range(value, ranges)
        if operand is not None:
            operands.append(operand)
        elif source is not None:
            fixed.append(source)
        first += size
    if not operands or not fixed:
        return None
    wanted = min(low for low, _ in fixed), max(high for _, high in fixed)
    return (operands, wanted) if wanted[0] < wanted[1] else None


def _operand(
    concat: ir.Node, value: ir.Value, channels: slice, ranges: Mapping[str, Range]
) -> _Operand | None:
    found = _source_range(value, ranges)
    if found is None or found[0] >= found[1]:
        return None
    maker = _maker(value)
    if maker is None or maker.linear.linear.bias_index is None or not maker.feeds(concat):
        return None
    return _Operand(maker.linear, channels, found, shifts=not maker.clamps)


@dataclass(frozen=True, eq=False)
class _Maker:
    """A linear operator, and what lies between it and the value it makes.

    Attributes:
        linear: The operator, with its bias.
        path: The nodes behind it, in their order.
    """

    linear: BiasedLinear
    path: tuple[ir.Node, ...]

    @property
    def clamps(self) -> bool:
        """Whether a shift would not pass: something cuts at zero."""
        return any(node.op_type == "Relu" for node in self.path)

    def feeds(self, concat: ir.Node) -> bool:
        """Whether nothing but ``concat`` reads any of it."""
        values = [self.linear.output, *(node.outputs[0] for node in self.path)]
        readers = [*self.path, concat]
        return all(only_consumer(each) is node for each, node in zip(values, readers, strict=True))


def _maker(value: ir.Value) -> _Maker | None:
    """The linear operator that makes ``value``, maybe through Relu or DepthToSpace."""
    path: list[ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in _PASSING and not node.domain:
        path.insert(0, node)
        source = node.inputs[0]
        if source is None:
            return None
        value, node = source, source.producer()
    linear = BiasedLinear.ending_in(value)
    return None if linear is None else _Maker(linear, tuple(path))


def _source_range(value: ir.Value, ranges: Mapping[str, Range]) -> Range | None:
    """The range of what ``value`` is moved from, as far back as it is known."""
    found = ranges.get(value.name or "")
    node = value.producer()
    while node is not None and ROLES.get(node.op_type) is Role.TIED and not node.domain:
        source = node.inputs[0]
        if node.op_type == "Concat" or source is None:
            break
        found = ranges.get(source.name or "", found)
        node = source.producer()
    return found


def _channels(value: ir.Value, axis: int) -> int | None:
    linear = BiasedLinear.ending_in(value)
    if linear is not None:
        return linear.linear.out_channels
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None


def _fits(biased: BiasedLinear, weights: Array, bias: Array) -> bool:
    dtype = biased.linear.dtype
    return all(rounded(each, dtype) is not None for each in (weights, bias)) and not sinks(
        weights, dtype
    )
