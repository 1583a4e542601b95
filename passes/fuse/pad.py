"""Folds explicit Pad into the padding of Conv, AveragePool and MaxPool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_ints, constant_scalar
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Softplus")


@dataclass(frozen=True)
class _Padding:
    """Constant padding of the spatial axes.

    Attributes:
        source: What is padded.
        begins: Elements added before each spatial axis.
        ends: Elements added after each spatial axis.
        level: The value of the added elements.
    """

    source: ir.Value
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    level: float

    @classmethod
    def match(cls, pad: ir.Node | None, opset: int) -> _Padding | None:
        """Read a Pad node; None where it crops, pads batch or channels, or is not constant."""
        if pad is None or pad.op_type != "Pad" or pad.domain or opset < 2:
            return None
        source = pad.inputs[0]
        rank = _rank(pad)
        widths = _widths(pad, opset)
        level = _level(pad, opset)
        if source is None or rank is None or rank < 3 or widths is None or level is None:
            return None
        axes = _axes(pad, rank)
        if pad.attributes.get_string("mode", "constant") != "constant" or axes is None:
            return None
        if len(widths) != 2 * len(axes):
            return None
        begins, ends = widths[: len(axes)], widths[len(axes) :]
        by_axis = {axis: pair for axis, *pair in zip(axes, begins, ends, strict=True)}
        pairs = [by_axis.get(axis, [0, 0]) for axis in range(rank)]
        if any(width < 0 for width in widths) or pairs[:2] != [[0, 0], [0, 0]]:
            return None
        spatial = pairs[2:]
        return cls(source, tuple(b for b, _ in spatial), tuple(e for _, e in spatial), level)

    def joined(self, node: ir.Node) -> list[int] | None:
        """The ``pads`` of ``node`` with this padding around them; None under another auto_pad."""
        axes = len(self.begins)
        match node.attributes.get_string("auto_pad", "NOTSET"):
            case "NOTSET":
                own = tuple(node.attributes.get_ints("pads", ())) or (0,) * (2 * axes)
            case "VALID":
                own = (0,) * (2 * axes)
            case _:
                return None
        if len(own) != 2 * axes:
            return None
        return [a + b for a, b in zip(own, (*self.begins, *self.ends), strict=True)]


@rule("fold-pad", "Conv", "AveragePool", "MaxPool")
def _fold_pad(node: ir.Node, rewriter: Rewriter) -> None:
    data = node.inputs[0]
    producer = data.producer() if data is not None else None
    padding = _Padding.match(producer, rewriter.opset(node))
    if data is None or producer is None or padding is None:
        return
    pads = padding.joined(node)
    if pads is None or not _admits(node, padding, pads):
        return
    rewriter.add_source(producer)
    rewriter.set_input(node, 0, padding.source)
    rewriter.set_attribute(node, "pads", pads)
    rewriter.set_attribute(node, "auto_pad", None)
    if node.op_type == "AveragePool":
        rewriter.set_attribute(node, "count_include_pad", 1)
    if not data.uses() and not data.is_graph_output():
        rewriter.erase(producer)


def _admits(node: ir.Node, padding: _Padding, pads: list[int]) -> bool:
    """Whether ``node``'s own padding means what the Pad means."""
    if node.op_type == "Conv":
        return padding.level == 0
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    dilated = any(each != 1 for each in node.attributes.get_ints("dilations", ()))
    # A window that sees no element, or hangs over the padding, is where the two would differ.
    if dilated or node.attributes.get_int("ceil_mode", 0):
        return False
    if any(pad >= size for pad, size in zip(pads, kernel + kernel, strict=True)):
        return False
    if node.op_type == "AveragePool":
        own = any(node.attributes.get_ints("pads", ()))
        counts = node.attributes.get_int("count_include_pad", 0) == 1
        return padding.level == 0 and (counts or not own)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return False
    return padding.source.dtype in _FLOATS and padding.level <= _lower_bound(padding.source)


def _lower_bound(value: ir.Value) -> float:
    """A number that no element of ``value`` is below."""
    producer = value.producer()
    if producer is None or producer.domain:
        return float("-inf")
    if producer.op_type in _NEVER_NEGATIVE:
        return 0.0
    if producer.op_type != "Clip":
        return float("-inf")
    if "min" in producer.attributes:
        return producer.attributes.get_float("min", float("-inf"))
    low = constant_scalar(producer.inputs[1]) if len(producer.inputs) > 1 else None
    return float("-inf") if low is None else float(low)


def _rank(pad: ir.Node) -> int | None:
    for value in (pad.inputs[0], pad.outputs[0]):
        if value is not None and value.shape is not None:
            return len(value.shape)
    widths = constant_ints(pad.inputs[1]) if len(pad.inputs) == 2 else None
    return len(widths) // 2 if widths is not None else None


def _widths(pad: ir.Node, opset: int) -> tuple[int, ...] | None:
    if opset < 11:
        return tuple(pad.attributes.get_ints("pads", ()))
    return constant_ints(pad.inputs[1])


def _level(pad: ir.Node, opset: int) -> float | None:
    if opset < 11:
        return pad.attributes.get_float("value", 0.0)
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return 0.0
    level = constant_scalar(pad.inputs[2])
    return None if level is None else float(level)


def _axes(pad: ir.Node, rank: int) -> tuple[int, ...] | None:
    if len(pad.inputs) < 4 or pad.inputs[3] is None:
        return tuple(range(rank))
    axes = constant_ints(pad.inputs[3])
    return None if axes is None else tuple(axis % rank for axis in axes)


@dataclass(frozen=True)
class FoldPad(PatternPass):
    """Fold a Pad of spatial axes into the Conv or pooling that reads it.

    Conv pads with 0; AveragePool too, if it counts what it pads; MaxPool with the smallest
    number, so there the Pad may have any value that the data is known not to fall below. Other
    modes, negative widths, and pooling in ceil mode are left alone.
    """

    name: ClassVar[str] = "fold-pad"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_fold_pad,)
