"""Normalizations: they need real numbers, and say so."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.fold.lowering import Lowering, Refusal
from onnxfold.passes.fold.rules.refusals import touches_quantization
from onnxfold.passes.fold.types import TypeState

_MOMENTS = "normalization needs the real mean and variance"


def normalize(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Division by what is computed from the data itself has no integer form."""
    return Refusal(_REASONS[node.op_type]) if touches_quantization(node, types) else None


def batch_norm(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """One factor and one offset a channel: part of the weights, if folded before quantizing."""
    if not touches_quantization(node, types):
        return None
    return Refusal(
        "its factors differ from channel to channel",
        "fold it into the convolution before quantizing (fold-batch-norm)",
    )


_REASONS = {
    "GroupNormalization": _MOMENTS,
    "InstanceNormalization": _MOMENTS,
    "LRN": "normalization needs the real sum of squares",
    "LayerNormalization": _MOMENTS,
    "LogSoftmax": "the logarithm of the sum of exponentials needs real numbers",
    "LpNormalization": "normalization needs the real norm",
    "MeanVarianceNormalization": _MOMENTS,
    "RMSNormalization": "normalization needs the real sum of squares",
}

RULES = {"BatchNormalization": batch_norm, **dict.fromkeys(_REASONS, normalize)}
