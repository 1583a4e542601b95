"""The windows of an AveragePool: their explicit padding, and how much of the data each covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array

_SPATIAL = 2  # batch and channels come first


@dataclass(frozen=True, eq=False)
class WindowAxis:
    """The windows along one spatial axis.

    Attributes:
        size: Taps of a window.
        stride: Distance between windows.
        dilation: Distance between taps.
        begin: Padding before the data.
        end: Padding behind the data, as much as the last window needs.
        counts: What each window's sum is divided by (float64), where that is not ``size``.
    """

    size: int
    stride: int
    dilation: int
    begin: int
    end: int
    counts: Array | None = None

    def covers(self, length: object) -> bool:
        """Whether the one window is all of the data, which is ``length`` long."""
        alone = self.begin == self.end == 0 and self.dilation == 1 and self.counts is None
        return alone and self.size == length


def window_axes(node: ir.Node, shape: ir.Shape) -> list[WindowAxis] | None:
    """The windows of pool ``node`` along each spatial axis of data of ``shape``.

    Returns:
        None where they depend on sizes that are not known, or are not the same in all versions
        of the operator (ceil_mode with padding that counts).
    """
    sizes = node.attributes.get_ints("kernel_shape") or ()
    rank = len(sizes)
    strides = node.attributes.get_ints("strides") or (1,) * rank
    dilations = node.attributes.get_ints("dilations") or (1,) * rank
    spatial = list(shape)[2:]
    axes: list[WindowAxis] = []
    for index, size in enumerate(sizes):
        length = spatial[index]
        axis = WindowAxis(size, strides[index], dilations[index], 0, 0)
        padding = _padding(node, axis, length, index, rank)
        found = None if padding is None else _window_axis(node, axis, length, padding)
        if found is None:
            return None
        axes.append(found)
    return axes


def has_known_windows(node: ir.Node) -> bool:
    """Whether the windows of pool ``node`` are known, see ``window_axes``."""
    return window_axes(node, shape_of_image(node)) is not None


def shape_of_image(node: ir.Node) -> ir.Shape:
    """The shape of what pool ``node`` reads, maybe of sizes not known."""
    source = node.inputs[0]
    rank = _SPATIAL + len(node.attributes.get_ints("kernel_shape") or ())
    unknown = ir.Shape([None] * rank)
    return unknown if source is None or source.shape is None else source.shape


def _padding(
    node: ir.Node, axis: WindowAxis, length: object, index: int, rank: int
) -> tuple[int, int] | None:
    """Padding before and behind; None where it depends on an unknown size."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    pads: Sequence[int] = node.attributes.get_ints("pads") or (0,) * (2 * rank)
    if mode == "NOTSET":
        return pads[index], pads[index + rank]
    if mode == "VALID":
        return 0, 0
    if not isinstance(length, int):
        return None
    windows = -(-length // axis.stride)
    extent = (axis.size - 1) * axis.dilation + 1
    total = max((windows - 1) * axis.stride + extent - length, 0)
    smaller = total // 2
    return (smaller, total - smaller) if mode == "SAME_UPPER" else (total - smaller, smaller)


def _window_axis(
    node: ir.Node, axis: WindowAxis, length: object, padding: tuple[int, int]
) -> WindowAxis | None:
    begin, end = padding
    ceil = bool(node.attributes.get_int("ceil_mode", 0))
    padding_counts = bool(node.attributes.get_int("count_include_pad", 0))
    plain = WindowAxis(axis.size, axis.stride, axis.dilation, begin, end)
    if not ceil and (padding_counts or (begin == 0 and end == 0)):
        return plain
    if not isinstance(length, int) or (ceil and padding_counts and (begin or end)):
        return None
    extent = (axis.size - 1) * axis.dilation + 1
    room = length + begin + end - extent
    windows = (-(-room // axis.stride) if ceil else room // axis.stride) + 1
    if ceil and (windows - 1) * axis.stride >= length + begin:
        windows -= 1
    end = max((windows - 1) * axis.stride + extent - length - begin, end if not ceil else 0)
    starts = np.arange(windows)[:, None] * axis.stride - begin
    taps = starts + np.arange(axis.size)[None, :] * axis.dilation
    counts = np.sum((taps >= 0) & (taps < length), axis=1).astype(np.float64)
    return WindowAxis(axis.size, axis.stride, axis.dilation, begin, end, counts)
