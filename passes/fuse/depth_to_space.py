"""Pass ``fuse-depth-to-space``: recognises transposed convolutions that only move pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.channel_affine import BiasedLinear, only_consumer
from onnxfold.passes.constants import Array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.linear_fold import replace_constant, rounded
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_DEFAULTS = {"dilations": 1, "output_padding": 0, "pads": 0}
_OPSET = 11
"""The first with the order of channels that such convolutions have."""


@rule("shuffle-pixels", "ConvTranspose")
def shuffle_pixels(node: ir.Node, rewriter: Rewriter) -> None:
    """Kernels of a single 1 that tile the output move channels into blocks of pixels."""
    linear = LinearOp.match(node)
    side = None if linear is None or rewriter.opset(node) < _OPSET else _block_side(linear)
    bias = None if linear is None else linear.channel_bias
    if linear is None or side is None or bias is None:
        return
    source = BiasedLinear.ending_in(linear.data) if bias.any() else None
    moved = None if source is None else _moved_bias(source, node, bias)
    if bias.any() and (source is None or moved is None):
        rewriter.remark(node, "nothing before it takes its bias")
        return
    if source is not None and moved is not None:
        rewriter.add_source(source.linear.node)
        replace_constant(rewriter, source.linear.node, 2, moved, "bias")
    shuffled = rewriter.insert(
        node,
        "DepthToSpace",
        [linear.data],
        name=f"{linear.output.name}_shuffled",
        attributes={"blocksize": side, "mode": "CRD"},
        dtype=linear.output.dtype,
        shape=linear.output.shape,
    )
    rewriter.replace_node(node, [shuffled])


@dataclass(frozen=True)
class FuseDepthToSpace(PatternPass):
    """ConvTranspose whose kernels hold a single 1, each at its place, becomes DepthToSpace.

    Such upsamplers are written as convolutions with stride and kernel of the same size. As data
    movement they cost less, and codes of 8 bits pass through them as they are. A bias goes to the
    convolution before; where there is none, or something else reads it, all stays. What is not
    finite stays at its place, too, instead of spreading through zeros.
    """

    name: ClassVar[str] = "fuse-depth-to-space"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """One rule."""
        return (shuffle_pixels,)


def _block_side(linear: LinearOp) -> int | None:
    """The side of the blocks that a ConvTranspose moves channels into; None for any other."""
    if len(linear.kernel_shape) != 2 or len(set(linear.kernel_shape)) != 1:
        return None
    attributes, side = linear.node.attributes, linear.kernel_shape[0]
    if "output_shape" in attributes or tuple(attributes.get_ints("strides", ())) != (side, side):
        return None
    if attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if any(set(attributes.get_ints(name, ())) - {each} for name, each in _DEFAULTS.items()):
        return None
    per_group = linear.in_channels // linear.groups
    kernels = linear.weights.reshape(linear.groups, per_group, -1)
    return side if np.array_equal(kernels, _ones(linear.groups, per_group)) else None


def _ones(groups: int, channels: int) -> Array:
    return np.broadcast_to(np.eye(channels), (groups, channels, channels))


def _moved_bias(source: BiasedLinear, node: ir.Node, bias: Array) -> Array | None:
    """The bias of the operator before, with that of each pixel that its channels become."""
    linear = source.linear
    if linear.node.op_type not in ("Conv", "ConvTranspose") or source.add is not None:
        return None
    if only_consumer(source.output) is not node:
        return None
    spread = np.repeat(bias, linear.out_channels // len(bias))
    return rounded(source.bias + spread, linear.dtype)
