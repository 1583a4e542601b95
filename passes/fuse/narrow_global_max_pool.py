"""Takes the maximum first and applies the activation to what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_array
from onnxfold.passes.elementwise import is_elementwise
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import axes_of
from onnxfold.passes.trend import Trend, trend_of

_SMALLEST = 5
"""Fewer pooled elements are not worth another node."""
_LARGEST_REGION = 64
_CLAMPS = ("Clip", "Relu")
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Pooling:
    """A maximum over whole axes.

    Attributes:
        node: The GlobalMaxPool, MaxPool or ReduceMax.
        source: What it pools.
        axes: The axes, ascending, none negative.
        rank: Rank of ``source``.
        keeps_axes: Whether the pooled axes stay, with size 1.
    """

    node: ir.Node
    source: ir.Value
    axes: tuple[int, ...]
    rank: int
    keeps_axes: bool

    @classmethod
    def of(cls, node: ir.Node) -> _Pooling | None:
        source = node.inputs[0]
        if source is None or len(node.outputs) != 1:
            return None
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        rank = None if source.shape is None else len(source.shape)
        if rank is None:
            return None
        spatial = tuple(range(2, rank))
        if node.op_type == "ReduceMax":
            given = axes_of(node, "axes", 1)
            axes = tuple(sorted({axis % rank for axis in given or ()}))
            keeps = "keepdims" not in node.attributes or bool(node.attributes["keepdims"].as_int())
            return cls(node, source, axes, rank, keeps) if axes else None
        if node.op_type == "MaxPool" and not _pools_everything(node, source):
            return None
        return cls(node, source, spatial, rank, True) if spatial else None

    def size(self, value: ir.Value) -> int | None:
        """How many elements of ``value`` make one maximum; None where that is not known."""
        if value.shape is None or len(value.shape) != self.rank:
            return None
        dims = [value.shape[axis] for axis in self.axes]
        known = [dim for dim in dims if isinstance(dim, int)]
        return math.prod(known) if len(known) == len(dims) else None

    def narrowed(self, value: ir.Value, width: int) -> ir.Shape | None:
        """The shape of ``value`` with ``width`` elements left along the first pooled axis."""
        if value.shape is None or len(value.shape) != self.rank:
            return None
        left = dict.fromkeys(self.axes, 1) | {self.axes[0]: width}
        return ir.Shape([left.get(axis, dim) for axis, dim in enumerate(value.shape)])

    def regions(self) -> list[tuple[list[ir.Node], ir.Value]]:
        """Every region that computes ``source`` from one value and constants; smallest first.

        Nothing outside a region reads what is inside. Each comes in an order of computation, with
        the value it computes from.
        """
        inside = {self.node}
        order: list[ir.Node] = []
        frontier = {self.source: None}
        found: list[tuple[list[ir.Node], ir.Value]] = []
        while len(order) < _LARGEST_REGION:
            ready = next((value for value in frontier if self._is_ready(value, inside)), None)
            node = None if ready is None else ready.producer()
            if ready is None or node is None:
                break
            inside.add(node)
            order.append(node)
            del frontier[ready]
            read = [value for value in node.inputs if value is not None]
            frontier.update({value: None for value in read if constant_array(value) is None})
            if len(frontier) == 1:
                found.append((order[::-1], next(iter(frontier))))
        return found

    def _is_ready(self, value: ir.Value, inside: set[ir.Node]) -> bool:
        node = value.producer()
        if node is None or node.graph is not self.node.graph or not is_elementwise(node):
            return False
        if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
            return False
        constant = [value is None or constant_array(value) is not None for value in node.inputs]
        return not all(constant) and all(self._is_free_of_axes(each) for each in node.inputs)

    def _is_free_of_axes(self, value: ir.Value | None) -> bool:
        """Whether ``value``, if constant, is finite and the same along the pooled axes."""
        array = constant_array(value)
        if array is None:
            return True
        if array.ndim > self.rank or not np.isfinite(array).all():
            return False
        padded = (1,) * (self.rank - array.ndim) + array.shape
        return all(padded[axis] == 1 for axis in self.axes)


def _pools_everything(node: ir.Node, source: ir.Value) -> bool:
    """Whether the one window of a MaxPool is the whole input."""
    if source.shape is None:
        return False
    others = {"pads": 0, "dilations": 1}
    for name, neutral in others.items():
        attribute = node.attributes.get(name)
        if attribute is not None and any(each != neutral for each in attribute.as_ints()):
            return False
    auto_pad = node.attributes.get("auto_pad")
    if auto_pad is not None and auto_pad.as_string() not in ("NOTSET", "VALID"):
        return False
    return tuple(node.attributes["kernel_shape"].as_ints()) == tuple(source.shape[2:])


@rule("narrow-global-max-pool", "GlobalMaxPool", "MaxPool", "ReduceMax")
def narrow_global_max_pool(node: ir.Node, rewriter: Rewriter) -> None:
    """``max(f(x))`` becomes ``f`` of the extremes of ``x``."""
    pooling = _Pooling.of(node)
    if pooling is None:
        return
    regions = [each for each in pooling.regions() if not _clamps_for_free(each[1])]
    sizes = [pooling.size(source) for _, source in regions]
    if not regions or any(size is not None and size < _SMALLEST for size in sizes):
        return
    if pooling.source.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or None in sizes:
        rewriter.remark(node, "type or size of what is pooled is not known", "run infer-shapes")
        return
    for region, source in reversed(regions):
        trend = trend_of(region, source)
        if trend is not None:
            _narrow(pooling, region, source, trend, rewriter)
            return
    rewriter.remark(node, "what is pooled is not known to rise, to fall, or to fall and then rise")


def _clamps_for_free(source: ir.Value) -> bool:
    """Whether what reads ``source`` is a clamp that the operator before it does for nothing.

    ONNX Runtime fuses it there, and a quantized activation keeps more bits behind it.
    """
    producer = source.producer()
    if producer is None or producer.op_type not in _LINEAR:
        return False
    return all(use.node.op_type in _CLAMPS for use in source.uses())


def _narrow(
    pooling: _Pooling,
    region: Sequence[ir.Node],
    source: ir.Value,
    trend: Trend,
    rewriter: Rewriter,
) -> None:
    """Replace ``pooling`` of ``region`` by ``region`` of the pooled ``source``."""
    node = pooling.node
    rewriter.add_source(*region)
    node = pooling.node
    reduction = "ReduceMax" if node.op_type == "ReduceMax" else "GlobalMaxPool"
    if trend is Trend.VALLEY:
        extremes = [
            _pool("ReduceMax", pooling, source, f"{source.name}_max", rewriter),
            _pool("ReduceMin", pooling, source, f"{source.name}_min", rewriter),
        ]
        narrow = rewriter.insert(
            node,
            "Concat",
            extremes,
            name=f"{source.name}_extremes",
            attributes={"axis": pooling.axes[0]},
            dtype=source.dtype,
            shape=pooling.narrowed(source, 2),
        )
    elif trend is Trend.RISING:
        narrow = _pool(reduction, pooling, source, f"{source.name}_max", rewriter)
    else:
        narrow = _pool("ReduceMin", pooling, source, f"{source.name}_min", rewriter)
    width = 2 if trend is Trend.VALLEY else 1
    narrow = _apply(pooling, region, {source: narrow}, width, rewriter)
    if width > 1 or not pooling.keeps_axes:
        name = f"{node.outputs[0].name}_narrow"
        narrow = _pool(reduction, pooling, narrow, name, rewriter, keepdims=pooling.keeps_axes)
    rewriter.replace_node(node, [narrow])
    for each in reversed(region):
        rewriter.erase(each)


def _pool(
    op_type: str,
    pooling: _Pooling,
    source: ir.Value,
    name: str,
    rewriter: Rewriter,
    *,
    keepdims: bool = True,
) -> ir.Value:
    """Insert a GlobalMaxPool, ReduceMax or ReduceMin of ``source`` over the pooled axes."""
    node = pooling.node
    inputs: list[ir.Value] = [source]
    attributes: dict[str, AttributeValue] = {}
    if op_type != "GlobalMaxPool":
        attributes["keepdims"] = int(keepdims)
        if rewriter.opset(node) < 18:
            attributes["axes"] = pooling.axes
        else:
            axes = np.array(pooling.axes, dtype=np.int64)
            inputs.append(rewriter.constant(node, axes, name=f"{name}_axes"))
    shape = pooling.narrowed(source, 1) if keepdims else None
    return rewriter.insert(
        node, op_type, inputs, name=name, attributes=attributes, dtype=source.dtype, shape=shape
    )


def _apply(
    pooling: _Pooling,
    region: Sequence[ir.Node],
    narrow: dict[ir.Value, ir.Value],
    width: int,
    rewriter: Rewriter,
) -> ir.Value:
    """Insert a copy of ``region`` that reads the values of ``narrow``; return its last output."""
    for node in region:
        wide = node.outputs[0]
        narrow[wide] = rewriter.insert(
            pooling.node,
            node.op_type,
            [None if value is None else narrow.get(value, value) for value in node.inputs],
            name=f"{wide.name}_narrow",
            attributes=dict(node.attributes),
            dtype=wide.dtype,
            shape=pooling.narrowed(wide, width),
        )
    return narrow[region[-1].outputs[0]]


@dataclass(frozen=True)
class NarrowGlobalMaxPool(PatternPass):
    """The maximum over whole axes is taken before the activation instead of behind it.

    Where f is elementwise, the same along the pooled axes, and

    - rises: ``max f(x) = f(max x)``;
    - falls: ``max f(x) = f(min x)``;
    - first falls and then rises (GELU in any form, SiLU, HardSwish, Mish): the maximum over an
      interval is at one of its ends, ``max f(x) = max(f(max x), f(min x))``.

    f then runs on one or two elements for each maximum, instead of on all. Holds for
    GlobalMaxPool, ReduceMax, and a MaxPool whose one window is everything. f is a chain, or any
    acyclic region, of elementwise operators that nothing else reads from; see ``trend_of`` for how
    its shape is decided. What is computed is a value that f takes, so the result only differs
    where ONNX Runtime's f is not monotone to the last bit.

    Holds for finite values: a NaN among them, or an f that overflows, may give another result.
    A Relu or Clip behind a Conv or MatMul stays there, where it costs nothing.
    """

    name: ClassVar[str] = "narrow-global-max-pool"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """One rule."""
        return (narrow_global_max_pool,)
