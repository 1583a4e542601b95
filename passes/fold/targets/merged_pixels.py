"""Integer convolutions of few channels that read and write blocks of pixels: see ``pixel_blocks``.

Channels-last a block is a Reshape. Written down are Transposes around it and around the
convolution, which ONNX Runtime cancels against its own once it holds convolutions channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.costs import CostTable, whole_channels
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.convolution_channels import (
    QUANTIZED_CONVOLUTION,
    integer_cost,
    is_convolution,
    weights_of,
)
from onnxfold.passes.fold.targets.pixel_blocks import Layer, Merging, fastest, layer_of
from onnxfold.passes.fold.unread import erase_unread
from onnxfold.passes.pair_saturation import can_saturate, summing_order
from onnxfold.passes.rewriter import Rewriter

MERGED_SUFFIX = "_blocks"
"""Appended to the name of a value, it names the same value in blocks of pixels."""

_TO_PIXELS, _TO_MAPS = (0, 2, 3, 1), (0, 3, 1, 2)
_Shape: TypeAlias = Sequence[int | str | None]
_WEIGHTS, _BIAS = 3, 8
_PER_OUTPUT = (4, 5, _BIAS)


def merge_pixels(plan: Plan, rewriter: Rewriter, costs: CostTable) -> None:
    """Let integer convolutions of few channels work on blocks of pixels, wherever that is faster.

    Args:
        plan: The plan, carried out.
        rewriter: The gate.
        costs: What kernels cost.
    """
    for node in [each for graph in plan.graphs for each in graph]:
        if node.op_type != QUANTIZED_CONVOLUTION or not is_convolution(node):
            continue
        data, weights = node.inputs[0], weights_of(node)
        layer = None if data is None else layer_of(node, data, node.outputs[0], weights)
        found = None if layer is None else fastest(layer, costs, _cost_of_pixels(node, costs))
        if layer is None or found is None:
            continue
        merged = found[0].weights(weights, layer)
        if not _saturates(merged, 1) or _saturates(weights, layer.group):
            _merge(node, layer, found[0], merged, rewriter)


def _cost_of_pixels(node: ir.Node, costs: CostTable) -> float:
    """Microseconds without blocks, maybe with more channels of the result."""
    outputs, inputs = weights_of(node).shape[:2]
    counts = outputs, whole_channels(outputs)
    return min(integer_cost(node, inputs, count, costs) for count in counts)


def _saturates(weights: Array, group: int) -> bool:
    """Whether machines without VNNI may compute something else."""
    depthwise = group > 1 and weights.shape[1] == 1
    return not depthwise and bool(np.any(can_saturate(summing_order(weights, axis=0))))


def _merge(
    node: ir.Node, layer: Layer, merging: Merging, weights: Array, rewriter: Rewriter
) -> None:
    data, result, blocks = node.inputs[0], node.outputs[0], merging.of(layer)
    assert data is not None
    places = [each for each in (_WEIGHTS, *_PER_OUTPUT) if each < len(node.inputs)]
    replaced = [data, *(node.inputs[place] for place in places)]
    with rewriter.step("merge-pixels", node):
        rewriter.set_input(node, 0, _blocks(node, data, blocks, rewriter))
        _set_weights(node, weights, blocks.outputs // layer.outputs, rewriter)
        _set_windows(node, blocks, rewriter)
        turned, own = _pixels(node, blocks, layer, rewriter)
        rewriter.replace_value(result, own, keep=(turned,))
        sizes = blocks.outputs, blocks.rows.written, blocks.columns.written
        rewriter.set_type(result, shape=[_batch(result), *sizes])
        if not own.is_graph_output():
            rewriter.swap_names(result, own)
            rewriter.rename(result, f"{own.name}{MERGED_SUFFIX}")
    for value in replaced:
        erase_unread(value, rewriter)


def _blocks(node: ir.Node, data: ir.Value, blocks: Layer, rewriter: Rewriter) -> ir.Value:
    """The data in blocks."""
    name = f"{data.name}{MERGED_SUFFIX}"
    rows, columns, channels = blocks.rows.read, blocks.columns.read, blocks.inputs
    source = _unshaped(_channels_last(node, data, rewriter))
    shape = _batch(data), rows, columns, channels
    reshaped = _reshape(node, source, shape, name, rewriter)
    shape = _batch(data), channels, rows, columns
    return _transpose(node, reshaped, _TO_MAPS, shape, name, rewriter)


def _pixels(
    node: ir.Node, blocks: Layer, layer: Layer, rewriter: Rewriter
) -> tuple[ir.Node, ir.Value]:
    """What turns the result to channels-last, and the result in pixels."""
    result = node.outputs[0]
    name, batch = f"{result.name}_pixels", _batch(result)
    shape = batch, blocks.rows.written, blocks.columns.written, blocks.outputs
    turned = _transpose(node, result, _TO_PIXELS, shape, name, rewriter, after=True)
    reader = turned.producer()
    assert reader is not None
    shape = batch, layer.rows.written, layer.columns.written, layer.outputs
    pixels = _reshape(reader, turned, shape, name, rewriter, after=True)
    shape = batch, layer.outputs, layer.rows.written, layer.columns.written
    last = pixels.producer() or reader
    return reader, _transpose(last, pixels, _TO_MAPS, shape, name, rewriter, after=True)


def _channels_last(node: ir.Node, data: ir.Value, rewriter: Rewriter) -> ir.Value:
    """The data, or what is the same in memory, with channels last."""
    assert data.shape is not None
    if data.shape[1] == 1:
        return data
    producer = data.producer()
    source = None if producer is None else producer.inputs[0]
    if producer is not None and source is not None and _turns_to_maps(producer):
        return source
    channels, *sizes = (size if isinstance(size, int) else None for size in data.shape[1:])
    shape = _batch(data), *sizes, channels
    return _transpose(node, data, _TO_PIXELS, shape, f"{data.name}_pixels", rewriter)


def _turns_to_maps(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain:
        return False
    return tuple(node.attributes.get_ints("perm", ())) == _TO_MAPS


def _unshaped(value: ir.Value) -> ir.Value:
    """What ``value`` is a Reshape of, where both hold as many elements for each image."""
    producer = value.producer()
    source = None if producer is None else producer.inputs[0]
    if producer is None or producer.op_type != "Reshape" or source is None or producer.domain:
        return value
    elements = _elements_of_an_image(value)
    return source if elements and _elements_of_an_image(source) == elements else value


def _elements_of_an_image(value: ir.Value) -> int:
    """Elements for each index of the first axis; 0 where that is not known."""
    sizes = [] if value.shape is None else list(value.shape)[1:]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if sizes and len(known) == len(sizes) else 0


def _transpose(
    anchor: ir.Node,
    value: ir.Value,
    order: Sequence[int],
    shape: _Shape,
    name: str,
    rewriter: Rewriter,
    *,
    after: bool = False,
) -> ir.Value:
    return rewriter.insert(
        anchor,
        "Transpose",
        [value],
        name=name,
        attributes={"perm": order},
        dtype=value.dtype,
        shape=shape,
        after=after,
    )


def _reshape(
    anchor: ir.Node,
    value: ir.Value,
    shape: _Shape,
    name: str,
    rewriter: Rewriter,
    *,
    after: bool = False,
) -> ir.Value:
    """A Reshape that leaves the batch as it is."""
    target = rewriter.constant(anchor, np.array([0, *shape[1:]], np.int64), name="block_shape")
    return rewriter.insert(
        anchor,
        "Reshape",
        [value, target],
        name=name,
        dtype=value.dtype,
        shape=shape,
        after=after,
    )


def _batch(value: ir.Value) -> int | str | None:
    assert value.shape is not None
    size = value.shape[0]
    return size if isinstance(size, int) else size.value


def _set_windows(node: ir.Node, blocks: Layer, rewriter: Rewriter) -> None:
    """Let a convolution go over blocks, in one group."""
    axes = blocks.rows, blocks.columns
    rewriter.set_attribute(node, "auto_pad", None)
    rewriter.set_attribute(node, "group", 1)
    rewriter.set_attribute(node, "kernel_shape", [each.taps for each in axes])
    rewriter.set_attribute(node, "strides", [each.stride for each in axes])
    rewriter.set_attribute(node, "dilations", [each.dilation for each in axes])
    pads = [*(each.before for each in axes), *(each.after for each in axes)]
    rewriter.set_attribute(node, "pads", pads)


def _set_weights(node: ir.Node, weights: Array, pixels: int, rewriter: Rewriter) -> None:
    """Give a convolution its weights, and what it has for each output once for each pixel."""
    for place in (_WEIGHTS, *_PER_OUTPUT):
        value = node.inputs[place] if place < len(node.inputs) else None
        constant = constant_array(value)
        if value is None or constant is None:
            continue
        if place != _WEIGHTS and place != _BIAS and constant.size == 1:
            continue  # one for all channels
        new: Array = weights if place == _WEIGHTS else np.tile(constant.reshape(-1), pixels)
        replaced = rewriter.constant(node, new, name=f"{value.name}{MERGED_SUFFIX}")
        rewriter.set_input(node, place, replaced)
