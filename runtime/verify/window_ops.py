"""Convolutions and average pools for onnx's reference evaluator, by matrix products.

Its own take windows apart one at a time: half a minute for what takes a second here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.ops import op_average_pool, op_conv

from onnxfold.passes.constants import Array

# onnx's classes have no type annotations.
_ReferenceConv: Any = op_conv.Conv
_ReferencePool: Any = op_average_pool.AveragePool_19
_EXPLICIT = (None, "", "NOTSET", "VALID")


class Conv(_ReferenceConv):
    """Replaces onnx's own; paddings to be found from the output's size are left to it."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        if auto_pad not in _EXPLICIT:
            options = (auto_pad, dilations, group, kernel_shape, pads, strides)
            result: tuple[Array] = _ReferenceConv._run(self, x, w, b, *options)
            return result
        rank, groups, kernel = x.ndim - 2, group or 1, w.shape[2:]
        windows = _windows(x, kernel, pads, strides, dilations)
        batch, places = x.shape[0], windows.shape[2 : 2 + rank]
        inner, outer = range(2 + rank, 2 + 2 * rank), range(2, 2 + rank)
        columns = np.moveaxis(windows, tuple(inner), tuple(outer))
        columns = columns.reshape(batch, groups, -1, math.prod(places))
        rows = w.reshape(groups, w.shape[0] // groups, -1)
        outputs: Array = np.matmul(rows, columns).reshape(batch, w.shape[0], *places)
        bias = 0.0 if b is None else b.reshape(-1, *(1,) * rank)
        return ((outputs + bias).astype(x.dtype),)


class AveragePool(_ReferencePool):
    """Replaces onnx's own where nothing is padded."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        count_include_pad: int | None = None,
    ) -> tuple[Array]:
        if auto_pad not in _EXPLICIT or ceil_mode or any(pads or ()) or kernel_shape is None:
            result: tuple[Array] = _ReferencePool._run(
                self,
                x,
                auto_pad=auto_pad,
                ceil_mode=ceil_mode,
                dilations=dilations,
                kernel_shape=kernel_shape,
                pads=pads,
                strides=strides,
                count_include_pad=count_include_pad,
            )
            return result
        windows = _windows(x, kernel_shape, None, strides, dilations)
        return (windows.mean(axis=tuple(range(x.ndim, windows.ndim))).astype(x.dtype),)


def _windows(
    x: Array,
    kernel: Sequence[int],
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
) -> Array:
    """What each place of the output sees: [N, C, places..., kernel...]."""
    rank = x.ndim - 2
    ones = [1] * rank
    before, after = (pads or [0] * 2 * rank)[:rank], (pads or [0] * 2 * rank)[rank:]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    apart = dilations or ones
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, apart, strict=True)]
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    steps = [slice(None, None, step) for step in (1, 1, *(strides or ones), *apart)]
    chosen: Array = windows[tuple(steps)]
    return chosen
