"""Which layers of a plan go to float kernels: the cheapest mix, with the ways between counted.

Only convolutions and the MaxPools behind them have a form on float kernels that gives the same
codes. Each of them reads one value, so they make up trees, on which the cheapest choice is found
exactly: the cost of a subtree for either choice at its root, from the leaves up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.fold.costs import (
    CostTable,
    Features,
    convolution_features,
    element_features,
    float_family,
    integer_family,
    pool_features,
    whole_channels,
)
from onnxfold.passes.fold.lowering import (
    Alias,
    Dequantize,
    Linear,
    Lowering,
    Move,
    Quantize,
)
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.channels_last import is_turned
from onnxfold.passes.fold.targets.pixel_blocks import fastest, layer_of

_MARGIN = 1.05
"""Float kernels must win by this factor: costs are fitted, and codes take a quarter of the room."""

_IMAGE_RANK = 4


@dataclass(eq=False)
class _Stage:
    """A lowering that may go to a float kernel, and what follows it; costs in microseconds.

    Attributes:
        lowering: The lowering.
        integer: Of the integer kernel.
        real: Of the float kernel.
        enter: From codes to the float kernel; infinite where it has to follow another one.
        stay: From the float kernel before it.
        leave: From the float kernel to codes.
        readers: The stages that read its result.
        read_elsewhere: Whether anything else reads the codes of its result.
        best: The least cost of the subtree for an integer and for a float kernel here.
        leaves: Whether the float kernel gives codes, in the best choice below it.
    """

    lowering: Lowering
    integer: float
    real: float
    enter: float
    stay: float
    leave: float
    readers: list[_Stage] = field(default_factory=list["_Stage"])
    read_elsewhere: bool = False
    best: tuple[float, float] = (0.0, 0.0)
    leaves: bool = False

    @property
    def after_integer(self) -> float:
        """The cost of the subtree behind codes."""
        return min(self.best[0], self.best[1] + self.enter)

    @property
    def after_float(self) -> float:
        """The cost of the subtree behind a float kernel that gives codes as well."""
        return min(self._integer_after_float, self.best[1] + self.stay)

    @property
    def _integer_after_float(self) -> float:
        # Channels-last MaxPool is to be had behind an integer convolution only.
        return math.inf if math.isinf(self.enter) else self.best[0]

    def solve(self) -> None:
        """Find ``best`` from that of the readers."""
        in_codes = self.integer + sum(each.after_integer for each in self.readers)
        leaving = self.leave + sum(each.after_float for each in self.readers)
        staying = sum(each.best[1] + each.stay for each in self.readers)
        self.leaves = self.read_elsewhere or leaving < staying
        self.best = in_codes, self.real + (leaving if self.leaves else staying)

    def is_float(self, *, after_float: bool, leaves: bool) -> bool:
        """The cheaper kernel, given the choice before it and whether that gives codes."""
        if not after_float:
            return self.best[1] + self.enter < self.best[0]
        return not leaves or self.best[1] + self.stay <= self._integer_after_float


def place(plan: Plan, costs: CostTable) -> frozenset[Lowering]:
    """The lowerings of ``plan`` that are cheaper on float kernels.

    Args:
        plan: The plan; it is not changed.
        costs: What kernels cost.
    """
    origins: dict[ir.Value, _Stage] = {}
    stages: list[_Stage] = []
    roots: list[_Stage] = []
    for node in plan.order:
        lowering = plan.lowerings.get(node)
        if lowering is None or lowering.node is not node:
            continue
        sources = [origins[each] for each in lowering.reads if each in origins]
        stage = _stage(lowering, costs)
        if stage is not None and not (isinstance(lowering, Move) and not sources):
            if sources:
                # Behind an integer kernel the codes are channels-last.
                stage.enter += costs.cost("change of layout", _elements_read(lowering))
            else:
                _begin(stage, plan, costs)
            (sources[0].readers if sources else roots).append(stage)
            stages.append(stage)
            origins.update(dict.fromkeys(lowering.node.outputs, stage))
        elif isinstance(lowering, Alias | Quantize | Dequantize) and sources:
            origins.update(dict.fromkeys(lowering.node.outputs, sources[0]))
        else:
            for source in sources:
                source.read_elsewhere = True
    for value, stage in origins.items():
        stage.read_elsewhere |= value in plan.needs_plain
    for stage in reversed(stages):
        stage.solve()
    return _chosen(roots)


def _begin(stage: _Stage, plan: Plan, costs: CostTable) -> None:
    """Add what it takes to come to the first stage, to the kernel that has to do it."""
    value = stage.lowering.reads[0]
    producer = value.producer()
    source = None if producer is None else plan.lowerings.get(producer)
    turn = costs.cost("change of layout", _elements_read(stage.lowering))
    # ONNX Runtime cancels a Transpose from channels-last in front of an integer kernel.
    if is_turned(value):
        stage.enter += turn
    else:
        stage.integer += turn
    if isinstance(source, Dequantize) and source.plain and source.type is not source.internal:
        # Integer kernels need uint8 codes: going there is as dear as going to float.
        stage.integer += stage.enter / _MARGIN


def _chosen(roots: Sequence[_Stage]) -> frozenset[Lowering]:
    """The lowerings on float kernels in the cheapest choice."""
    chosen: list[Lowering] = []
    pending = [(root, root.is_float(after_float=False, leaves=True)) for root in roots]
    while pending:
        stage, in_float = pending.pop()
        if in_float:
            chosen.append(stage.lowering)
        pending += [
            (each, each.is_float(after_float=in_float, leaves=stage.leaves))
            for each in stage.readers
        ]
    return frozenset(chosen)


def _stage(lowering: Lowering, costs: CostTable) -> _Stage | None:
    """The costs of a lowering; None where it has no form on float kernels, or sizes unknown."""
    match lowering:
        case Linear(operator=ir.Node(op_type="Conv")):
            return _convolution(lowering, costs)
        case Move(node=ir.Node(op_type="MaxPool")):
            return _max_pool(lowering, costs)
        case _:
            return None


def _convolution(linear: Linear, costs: CostTable) -> _Stage | None:
    weights, value = linear.w.codes, linear.x.value
    if linear.type is None or weights is None or weights.ndim != _IMAGE_RANK or value is None:
        return None
    read, written = _elements(value), _elements(linear.output)
    if read is None or written is None:
        return None
    outputs, inputs = weights.shape[:2]
    group = linear.operator.attributes.get_int("group", 1)
    kernel, pixels = weights.shape[2:], written // outputs
    features = convolution_features(kernel, inputs, outputs, pixels)
    whole = whole_channels(outputs)
    padded = convolution_features(kernel, inputs, whole, pixels)
    integer = min(
        costs.cost(integer_family(inputs, outputs, group), features),
        costs.cost(integer_family(inputs, whole, whole if group > 1 else 1), padded),
    )
    integer = _in_blocks(linear, weights, costs, integer)
    return _Stage(
        lowering=linear,
        integer=integer,
        real=_MARGIN * costs.cost(float_family(outputs, group), features),
        enter=_MARGIN * costs.cost("codes to float", element_features(read)),
        stay=_MARGIN * costs.cost("rounding", element_features(read)),
        leave=_MARGIN * costs.cost("float to codes", element_features(written)),
    )


def _in_blocks(linear: Linear, weights: Array, costs: CostTable, cost: float) -> float:
    """The cost of an integer kernel that works on blocks of pixels, or ``cost`` if that is less."""
    value = linear.x.value
    if value is None or np.any(linear.w.type.zero_point):
        return cost
    layer = layer_of(linear.operator, value, linear.output, weights)
    found = None if layer is None else fastest(layer, costs, cost)
    return cost if found is None else found[1]


def _max_pool(move: Move, costs: CostTable) -> _Stage | None:
    output = move.node.outputs[0]
    written, shape = _elements(output), output.shape
    if written is None or shape is None or len(shape) != _IMAGE_RANK or len(move.node.outputs) > 1:
        return None
    channels = shape[1]
    if not isinstance(channels, int) or channels < 1:
        return None
    kernel = move.node.attributes.get_ints("kernel_shape", ())
    features = pool_features(kernel, channels, written // channels)
    return _Stage(
        lowering=move,
        integer=costs.cost("integer max pool", features),
        real=_MARGIN * costs.cost("float max pool", features),
        enter=math.inf,
        stay=0.0,
        leave=_MARGIN * costs.cost("float to codes", element_features(written)),
    )


def _elements_read(lowering: Lowering) -> Features:
    return element_features(_elements(lowering.reads[0]) or 0)


def _elements(value: ir.Value) -> int | None:
    """Number of elements; a batch that is not known counts as 1, other unknown sizes as unknown."""
    if value.shape is None or len(value.shape) == 0:
        return None
    sizes = list(value.shape)
    rest = [size for size in sizes[1:] if isinstance(size, int)]
    if len(rest) < len(sizes) - 1:
        return None
    return math.prod(rest) * (sizes[0] if isinstance(sizes[0], int) else 1)
