"""Neighbouring pixels of a convolution as channels: which blocks of them, and at what cost.

Channels-last, the pixels of a row lie behind each other: ``b`` of C channels are one of b C
channels, without a copy. So a convolution of few channels may read blocks of ``b`` pixels and
write blocks of ``m``, with weights of 0 wherever a pixel of the block is not under the kernel. It
multiplies more, but kernels of ONNX Runtime take 16 outputs and 4 inputs together, and their work
for each pixel is a large part of the time of a first layer. Microseconds, onnxruntime 1.32.0, one
thread, AVX512-VNNI (b and m in brackets):

    3x3 stride 2, 3 to 8 channels, 96x96            85     (4, 4) 15    (4, 2) 18    (8, 4) 18
    3x3 depthwise, 8 channels, 48x48                58     (1, 4) 21    (1, 2) 24    (2, 2) 23
    10x4 stride 2, 1 to 64 channels, 50x10          18     whole rows, two of them together: 7
    1x1, 8 to 16 channels, 48x48                    12     (2, 2) 9
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.fold.costs import (
    CHANNELS_READ,
    CHANNELS_TOGETHER,
    CostTable,
    convolution_features,
    element_features,
    integer_family,
)

_IMAGE_RANK = 4
_MOST_PIXELS = 16  # in a block
_MOST_WEIGHTS = 1 << 18
_MOST_CHANNELS = 32  # of a convolution with groups: its weights become those of one group
_RESHAPES = 2
_NARROW = 1.3  # what products of 16 outputs cost, by those of more, that read their data once
_WORTH = 0.05
"""The share of the time that blocks have to save: costs are fitted."""


@dataclass(frozen=True)
class Axis:
    """A spatial axis of a convolution, in pixels or in blocks of them.

    Attributes:
        read: Size of the data.
        written: Size of the result.
        taps: Size of the kernel.
        stride: Distance between windows.
        dilation: Distance between taps.
        before: Padding in front of the data.
    """

    read: int
    written: int
    taps: int
    stride: int
    dilation: int
    before: int

    @property
    def after(self) -> int:
        """Padding behind the data, as much as the last window needs."""
        reach = (self.written - 1) * self.stride + (self.taps - 1) * self.dilation + 1
        return max(reach - self.before - self.read, 0)

    @property
    def is_exact(self) -> bool:
        """Whether ``after`` leads to as many windows as are written."""
        reach = (self.taps - 1) * self.dilation + 1
        room = self.read + self.before + self.after - reach
        return room >= 0 and room // self.stride + 1 == self.written


@dataclass(frozen=True)
class Block:
    """How many pixels of an axis are one.

    Attributes:
        read: Of the data.
        written: Of the result.
    """

    read: int = 1
    written: int = 1

    def of(self, axis: Axis) -> Axis:
        """The axis in blocks; ``read`` and ``written`` have to divide its sizes."""
        first, last = self._span(axis)
        read, written = axis.read // self.read, axis.written // self.written
        stride = read if written == 1 else self.written * axis.stride // self.read
        return Axis(read, written, last - first + 1, stride, 1, -first)

    def merge(self, weights: Array, axis: Axis) -> Array:
        """Weights [outputs, inputs, taps, others] as those of ``of(axis)``, in its last pixels.

        Returns:
            [written * outputs, read * inputs, taps in blocks, others].
        """
        outputs, inputs, taps, others = weights.shape
        first, last = self._span(axis)
        shape = (self.written, outputs, self.read, inputs, last - first + 1, others)
        merged = np.zeros(shape, weights.dtype)
        for pixel in range(self.written):
            for tap in range(taps):
                place = pixel * axis.stride + tap * axis.dilation - axis.before
                block, inside = divmod(place, self.read)
                if first <= block <= last:
                    merged[pixel, :, inside, :, block - first] = weights[:, :, tap]
        result: Array = merged.reshape(self.written * outputs, self.read * inputs, *shape[4:])
        return result

    def _span(self, axis: Axis) -> tuple[int, int]:
        """The first and the last block that the first window of blocks reads."""
        reach = (self.written - 1) * axis.stride + (axis.taps - 1) * axis.dilation
        first, last = -axis.before // self.read, (reach - axis.before) // self.read
        if self.written == axis.written:  # the only window: padding adds nothing to its sums
            return max(first, 0), min(last, axis.read // self.read - 1)
        return first, last


@dataclass(frozen=True)
class Layer:
    """A 2-D convolution.

    Attributes:
        batch: Images; 1 where that is not known.
        inputs: Channels of the data.
        outputs: Channels of the result.
        group: Number of groups.
        rows: The axis of rows.
        columns: The axis of columns.
    """

    batch: int
    inputs: int
    outputs: int
    group: int
    rows: Axis
    columns: Axis


_NOTHING = Layer(
    0, CHANNELS_READ, CHANNELS_TOGETHER, 1, Axis(1, 1, 1, 1, 1, 0), Axis(1, 1, 1, 1, 1, 0)
)


@dataclass(frozen=True)
class Merging:
    """Blocks of pixels: of a row, and of whole rows where a row is one block.

    Attributes:
        rows: Along the columns of the image, how many rows are one.
        columns: Along a row.
    """

    rows: Block
    columns: Block

    def of(self, layer: Layer) -> Layer:
        """The convolution of blocks."""
        return Layer(
            batch=layer.batch,
            inputs=layer.inputs * self.rows.read * self.columns.read,
            outputs=layer.outputs * self.rows.written * self.columns.written,
            group=1,
            rows=self.rows.of(layer.rows),
            columns=self.columns.of(layer.columns),
        )

    def weights(self, weights: Array, layer: Layer) -> Array:
        """The weights [outputs, inputs / group, rows, columns] of ``of(layer)``."""
        whole = _ungrouped(weights, layer.group)
        merged = self.columns.merge(np.swapaxes(whole, 2, 3), layer.columns)
        return self.rows.merge(np.swapaxes(merged, 2, 3), layer.rows)


def layer_of(node: ir.Node, data: ir.Value, result: ir.Value, weights: Array) -> Layer | None:
    """The convolution with the attributes of ``node``; None where sizes are not known."""
    read, written = _sizes(data), _sizes(result)
    if read is None or written is None or weights.ndim != _IMAGE_RANK:
        return None
    known = node.attributes
    pads = _pads(node, read, written, weights.shape[2:])
    if min(pads) < 0:
        return None
    strides = known.get_ints("strides") or (1, 1)
    dilations = known.get_ints("dilations") or (1, 1)
    rows, columns = (
        Axis(
            read[1 + index],
            written[1 + index],
            weights.shape[2 + index],
            strides[index],
            dilations[index],
            pads[index],
        )
        for index in range(2)
    )
    size = None if data.shape is None else data.shape[0]
    batch = size if isinstance(size, int) else 1
    return Layer(batch, read[0], written[0], known.get_int("group", 1), rows, columns)


def fastest(layer: Layer, costs: CostTable, limit: float) -> tuple[Merging, float] | None:
    """The blocks with which a convolution is fastest, and its microseconds then.

    Args:
        layer: The convolution.
        costs: What kernels cost.
        limit: Microseconds of another way, below which it has to be by far.
    """
    few_inputs, few_outputs = layer.inputs < CHANNELS_TOGETHER, layer.outputs < CHANNELS_TOGETHER
    if layer.group > 1 and max(layer.inputs, layer.outputs) > _MOST_CHANNELS:
        return None
    if layer.group == 1 and not few_inputs and not few_outputs:
        return None
    best, least = None, limit * (1 - _WORTH)
    if least <= _cost(_NOTHING, costs):
        return None
    for merging in _mergings(layer):
        cost = _cost(merging.of(layer), costs)
        if cost < least:
            best, least = merging, cost
    return None if best is None else (best, least)


def _cost(layer: Layer, costs: CostTable) -> float:
    taps = layer.rows.taps, layer.columns.taps
    pixels = layer.batch * layer.rows.written * layer.columns.written
    features = dict(convolution_features(taps, layer.inputs, layer.outputs, pixels))
    if layer.outputs <= CHANNELS_TOGETHER:
        features["blocked products"] *= _NARROW
    family = integer_family(layer.inputs, layer.outputs, layer.group)
    return costs.cost(family, features) + _RESHAPES * costs.cost(
        "change of layout", element_features(0)
    )


def _mergings(layer: Layer) -> Iterator[Merging]:
    for columns in _blocks(layer.columns):
        whole = (columns.read, columns.written) == (layer.columns.read, layer.columns.written)
        for rows in _blocks(layer.rows) if whole else (Block(),):
            merging = Merging(rows, columns)
            if (rows, columns) != (Block(), Block()) and _is_possible(merging.of(layer)):
                yield merging


def _blocks(axis: Axis) -> Iterator[Block]:
    """Blocks that divide the axis and move by whole blocks."""
    for written in _divisors(axis.written):
        for read in _divisors(axis.read):
            if written == axis.written or written * axis.stride % read == 0:
                yield Block(read, written)


def _divisors(size: int) -> list[int]:
    return [each for each in range(1, min(size, _MOST_PIXELS) + 1) if size % each == 0]


def _is_possible(layer: Layer) -> bool:
    """Whether the kernels that take channels together take these."""
    if not layer.rows.is_exact or not layer.columns.is_exact:
        return False
    weights = layer.inputs * layer.outputs * layer.rows.taps * layer.columns.taps
    whole = layer.inputs % CHANNELS_READ == 0 and layer.outputs % CHANNELS_READ == 0
    return whole and layer.outputs >= CHANNELS_TOGETHER and weights <= _MOST_WEIGHTS


def _ungrouped(weights: Array, group: int) -> Array:
    """Weights of ``group`` groups as those of one."""
    outputs, inputs = weights.shape[:2]
    share = outputs // group
    whole = np.zeros((outputs, inputs * group, *weights.shape[2:]), weights.dtype)
    for index in range(group):
        own = slice(index * share, (index + 1) * share)
        whole[own, index * inputs : (index + 1) * inputs] = weights[own]
    return whole


def _sizes(value: ir.Value) -> tuple[int, int, int] | None:
    """Channels, height and width, where all are known and none is 0."""
    shape = value.shape
    if shape is None or len(shape) != _IMAGE_RANK:
        return None
    _, channels, height, width = shape
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        return None
    return (channels, height, width) if min(channels, height, width) > 0 else None


def _pads(
    node: ir.Node,
    read: tuple[int, int, int],
    written: tuple[int, int, int],
    kernel: tuple[int, ...],
) -> tuple[int, ...]:
    """The padding in front of rows and columns."""
    attributes = node.attributes
    mode = attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return tuple(attributes.get_ints("pads") or (0, 0, 0, 0))[:2]
    if mode == "VALID":
        return 0, 0
    strides = attributes.get_ints("strides") or (1, 1)
    dilations = attributes.get_ints("dilations") or (1, 1)
    totals = [
        max((written[1 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - read[1 + i], 0)
        for i in range(2)
    ]
    return tuple(total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals)
