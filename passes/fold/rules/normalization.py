"""Normalizations: those by what is computed from the data need real numbers, and say so."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Function, Lowering, Refusal
from onnxfold.passes.fold.rules.operands import reads, real_constant
from onnxfold.passes.fold.rules.refusals import touches_quantization
from onnxfold.passes.fold.rules.rounded import rounded_operand
from onnxfold.passes.fold.types import Quantized, TypeState

_MOMENTS = "normalization needs the real mean and variance"


def normalize(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Division by what is computed from the data itself has no integer form."""
    return Refusal(_REASONS[node.op_type]) if touches_quantization(node, types) else None


def batch_norm(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """One factor and one offset a channel: a table for each."""
    found = rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand, want = found
    numbers = _table(node, operand.type, types)
    if numbers is None:
        return Refusal("its statistics are not constant, or its channels not known")
    types.put(node.outputs[0], Quantized(want))
    return Function(
        node=node,
        reads=reads(operand),
        covered=(node,),
        operand=operand,
        table=want.quantize(numbers),
        numbers=numbers,
        axis=1,
        type=want,
    )


def batch_norm_step(node: ir.Node, types: TypeState) -> tuple[Array, Array] | None:
    """Scale and shift of each channel (float64) of a BatchNormalization at inference.

    None where its parameters are not constant, dequantized or as they are.
    """
    constants = [real_constant(value, types) for value in node.inputs[1:5]]
    gamma, beta, mean, variance = (
        None if each is None else each.astype(np.float64) for each in constants
    )
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    if node.attributes.get_int("training_mode", 0):
        return None
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


def _table(node: ir.Node, affine: AffineType, types: TypeState) -> Array | None:
    """The real results for all codes, [channels, 256]; None where they are not constant."""
    step, data = batch_norm_step(node, types), node.inputs[0]
    if step is None or data is None or data.shape is None:
        return None
    scale, shift = step
    low, high = affine.limits
    numbers = affine.dequantize(np.arange(low, high + 1)).astype(np.float64)
    return np.asarray(numbers * scale[:, None] + shift[:, None], np.float32)


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
