"""Channels added at the edges of integer convolutions, where others see what they read or write.

A convolution of 3 channels, or to fewer than 16, goes the slow way of ONNX Runtime (figures in
``padded_channels``). It does not if a Pad adds channels to its data, which are read with weights
of 0, or if it computes more, of which a Slice takes its own. Both copy whole maps in NCHW: 0.5 us
for 3x96x96 codes; channels-last they copy pixel by pixel: 3 ns each for the Slice, 10 for the Pad.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.fold.costs import CHANNELS_READ, CHANNELS_TOGETHER, CostTable
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.channels_last import is_turned
from onnxfold.passes.fold.targets.convolution_channels import (
    QUANTIZED_CONVOLUTION,
    add_inputs,
    add_outputs,
    channels_of,
    group_of,
    integer_cost,
    is_convolution,
    pixels_of,
    resize_channels,
    weights_of,
)
from onnxfold.passes.fold.targets.padded_channels import PADDED_SUFFIX
from onnxfold.passes.rewriter import Rewriter

_COPY = 1.0  # microseconds of a Pad or Slice, but for the elements
_PADDED_PIXEL, _SLICED_PIXEL = 3e-4, 4e-3  # of one of NCHW, and of one channels-last
_WORTH = 0.1
"""The share of the time that copies have to save."""


def add_edge_channels(plan: Plan, rewriter: Rewriter, costs: CostTable) -> None:
    """Add channels in front of and behind integer convolutions, wherever that is faster.

    Args:
        plan: The plan, carried out.
        rewriter: The gate.
        costs: What kernels cost.
    """
    padded: dict[tuple[ir.Graph | ir.Function | None, ir.Value], ir.Value] = {}
    for node in [each for graph in plan.graphs for each in graph]:
        if node.op_type != QUANTIZED_CONVOLUTION or group_of(node) != 1:
            continue
        if not is_convolution(node) or not channels_of(node.outputs[0]):
            continue
        more_inputs, more_outputs = _fastest(node, costs)
        if more_inputs:
            _pad_data(node, more_inputs, padded, rewriter)
        if more_outputs:
            _slice_result(node, more_outputs, rewriter)


def _fastest(node: ir.Node, costs: CostTable) -> tuple[int, int]:
    """How many channels to add to the data and to the result."""
    outputs, inputs = weights_of(node).shape[:2]
    data = node.inputs[0]
    now = integer_cost(node, inputs, outputs, costs)
    choices = {(0, 0): now * (1 - _WORTH)}
    more_inputs = -inputs % CHANNELS_READ
    more_outputs = max(CHANNELS_TOGETHER - outputs, 0)
    slicing = _COPY + _SLICED_PIXEL * pixels_of(node.outputs[0])
    if more_outputs:
        cost = integer_cost(node, inputs, outputs + more_outputs, costs)
        choices[0, more_outputs] = cost + slicing
    if more_inputs and data is not None and channels_of(data) == inputs and not is_turned(data):
        padding = _COPY + _PADDED_PIXEL * pixels_of(data)
        choices[more_inputs, 0] = padding + integer_cost(node, inputs + more_inputs, outputs, costs)
        choices[more_inputs, more_outputs] = padding + integer_cost(
            node, inputs + more_inputs, outputs + more_outputs, costs
        )
        if more_outputs:
            choices[more_inputs, more_outputs] += slicing
    return min(choices, key=lambda each: choices[each])


def _pad_data(
    node: ir.Node,
    more: int,
    padded: dict[tuple[ir.Graph | ir.Function | None, ir.Value], ir.Value],
    rewriter: Rewriter,
) -> None:
    data = node.inputs[0]
    assert data is not None
    with rewriter.step("pad-channels", node):
        key = (node.graph, data)
        if key not in padded:
            amounts = rewriter.constant(
                node, np.array([0, 0, 0, 0, 0, more, 0, 0], np.int64), name="pads"
            )
            padded[key] = rewriter.insert(
                node,
                "Pad",
                [data, amounts],
                name=f"{data.name}{PADDED_SUFFIX}",
                dtype=data.dtype,
                shape=data.shape,
            )
            resize_channels(padded[key], channels_of(data) + more, rewriter)
        rewriter.set_input(node, 0, padded[key])
        add_inputs(node, more, rewriter)


def _slice_result(node: ir.Node, more: int, rewriter: Rewriter) -> None:
    result = node.outputs[0]
    count = channels_of(result)
    with rewriter.step("slice-channels", node):
        bounds = [
            rewriter.constant(node, np.array([bound], np.int64), name=name)
            for name, bound in (("start", 0), ("end", count), ("axis", 1))
        ]
        own = rewriter.insert(
            node,
            "Slice",
            [result, *bounds],
            name=f"{result.name}_slice",
            dtype=result.dtype,
            shape=result.shape,
            after=True,
        )
        add_outputs(node, more, rewriter)
        rewriter.replace_value(result, own)
        resize_channels(result, count + more, rewriter)
        if not own.is_graph_output():
            rewriter.swap_names(result, own)
            rewriter.rename(result, f"{own.name}{PADDED_SUFFIX}")
