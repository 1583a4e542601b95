"""Which layers of a model can be quantized, and which kinds of layer they are."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.linear import LinearOp
from onnxfold.passes.provenance import node_name
from onnxfold.passes.walk import nested_graphs

_FEW_CHANNELS = 4
_WIDE = 32
"""Channels, in and out, from which integer matrix kernels beat float ones (measured, AVX512)."""


def linear_layers(model: ir.Model) -> dict[str, str]:
    """Node name -> kind of layer, for the linear operators with constant weights, in bodies too.

    The kinds are those that integer kernels treat differently: convolutions of very few input
    channels and depthwise ones often lose to float where wide ones win several times.
    """
    layers: dict[str, str] = {}
    for graph in (model.graph, *nested_graphs(model.graph)):
        for node in graph:
            linear = LinearOp.match(node)
            if linear is not None:
                layers[node_name(node)] = _kind(linear)
    return layers


def _kind(linear: LinearOp) -> str:
    op_type = linear.node.op_type
    if op_type not in ("Conv", "ConvTranspose"):
        return op_type
    channels = linear.weight_shape[linear.input_axis]
    kernel = linear.weight_shape[2:]
    if linear.groups > 1 and channels == 1:
        return f"depthwise {op_type}"
    if linear.groups > 1:
        return f"grouped {op_type}"
    if channels <= _FEW_CHANNELS:
        return f"{op_type} of at most {_FEW_CHANNELS} input channels"
    if any(size != 1 for size in kernel):
        return op_type
    width = min(linear.in_channels, linear.out_channels)
    return f"1x1 {op_type}" if width >= _WIDE else f"1x1 {op_type} of less than {_WIDE} channels"
