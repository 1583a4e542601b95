"""Means of whole maps that are read flat: channels-last, so that nothing is turned back for it.

ONNX Runtime computes a QLinearGlobalAveragePool behind convolutions, and a convolution that leaves
one pixel, channels-last and transposes the result, in a node of its own (1 us). One image of one
pixel is the same in either order: a Transpose to channels-last in front of the Reshape or Squeeze
cancels that one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.channels_last import is_channels_last
from onnxfold.passes.fold.targets.convolution_channels import QUANTIZED_CONVOLUTION
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import axes_of, reshape_target

_MEAN = "QLinearGlobalAveragePool"
_FLAT_RANK = 2
_TO_PIXELS = (0, 2, 3, 1)
_PIXEL, _PIXEL_LAST = (2, 3), (1, 2)
"""Height and width of maps, and of the same channels-last."""


def read_means_flat(plan: Plan, rewriter: Rewriter) -> None:
    """Turn means of maps to channels-last in front of a Reshape or Flatten to [batch, channels].

    Args:
        plan: The plan, carried out.
        rewriter: The gate.
    """
    for node in [each for graph in plan.graphs for each in graph]:
        if node.op_type not in ("Reshape", "Flatten", "Squeeze") or node.domain:
            continue
        mean = node.inputs[0]
        if mean is None or not _is_pixel_of_convolutions(mean) or not _is_flat(node):
            continue
        with rewriter.step("read-mean-flat", node):
            turned = rewriter.insert(
                node,
                "Transpose",
                [mean],
                name=f"{mean.name}_pixels",
                attributes={"perm": _TO_PIXELS},
                dtype=mean.dtype,
            )
            rewriter.set_input(node, 0, turned)
            if node.op_type == "Squeeze":
                axes = rewriter.constant(node, np.array(_PIXEL_LAST, np.int64), name="pixel_axes")
                rewriter.set_input(node, 1, axes)


def _is_pixel_of_convolutions(value: ir.Value) -> bool:
    """Whether it is one pixel, held channels-last as what it is made of, and is read once."""
    node = value.producer()
    if node is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    if node.op_type == QUANTIZED_CONVOLUTION and not node.domain:
        return value.shape is not None and value.shape[2:] == (1, 1)
    if node.op_type != _MEAN or node.attributes.get_int("channels_last", 0):
        return False
    maps = node.inputs[0]
    return maps is not None and is_channels_last(maps)


def _is_flat(node: ir.Node) -> bool:
    """Whether it makes [batch, channels] of one pixel in either order."""
    if node.op_type == "Squeeze":
        return len(node.inputs) > 1 and axes_of(node, "axes", 1) == _PIXEL
    target = reshape_target(node)
    if node.op_type == "Flatten":
        return node.attributes.get_int("axis", 1) == 1
    return target is not None and len(target) == _FLAT_RANK and target[1] != 0
