"""Means of whole maps that are read flat: channels-last, so that nothing is turned back for it.

ONNX Runtime computes a QLinearGlobalAveragePool behind convolutions channels-last and transposes
its result, in a node of its own (1 us). One image of one pixel is the same in either order: a
Transpose to channels-last in front of the Reshape cancels that one.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.channels_last import is_channels_last
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import reshape_target

_MEAN = "QLinearGlobalAveragePool"
_FLAT_RANK = 2
_TO_PIXELS = (0, 2, 3, 1)


def read_means_flat(plan: Plan, rewriter: Rewriter) -> None:
    """Turn means of maps to channels-last in front of a Reshape or Flatten to [batch, channels].

    Args:
        plan: The plan, carried out.
        rewriter: The gate.
    """
    for node in [each for graph in plan.graphs for each in graph]:
        if node.op_type not in ("Reshape", "Flatten") or node.domain:
            continue
        mean = node.inputs[0]
        if mean is None or not _is_mean_behind_convolutions(mean) or not _is_flat(node):
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


def _is_mean_behind_convolutions(value: ir.Value) -> bool:
    """Whether it is the mean of maps that are held channels-last, and is read once."""
    node = value.producer()
    if node is None or node.op_type != _MEAN or node.attributes.get_int("channels_last", 0):
        return False
    maps = node.inputs[0]
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return alone and maps is not None and is_channels_last(maps)


def _is_flat(node: ir.Node) -> bool:
    """Whether it makes [batch, channels] of one pixel in either order."""
    target = reshape_target(node)
    if node.op_type == "Flatten":
        return node.attributes.get_int("axis", 1) == 1
    return target is not None and len(target) == _FLAT_RANK and target[1] != 0
