"""The budget that suits a model where the user names no limits."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxfold.runtime.specs import is_float
from onnxfold.runtime.verify.budget import Budget

IMAGE_SQNR_DB = 46.0
"""For pictures. A demosaicing network of 40.5 dB of PSNR lost 0.8 dB at 41.5 dB of SQNR and 0.4 at
45.9 (measured on other photographs, where the noise was 1 dB more)."""
_COLOURS = (1, 3, 4)
_SMALLEST = 8
_SHARES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax"})


def suited_budget(budget: Budget, model: ir.Model) -> Budget:
    """``budget``, with a stricter limit on noise where it names none and all outputs are pictures.

    A picture is a channel or three, or four, of real numbers over a plane, made of such planes, and
    no shares or probabilities.
    """
    inputs = [each for each in model.graph.inputs if not each.is_initializer()]
    outputs = model.graph.outputs
    if not budget.decisions_first or budget.sqnr_db is None or not outputs:
        return budget
    if not all(map(_is_picture, outputs)) or not any(map(_is_plane, inputs)):
        return budget
    return replace(budget, sqnr_db=max(budget.sqnr_db, IMAGE_SQNR_DB))


def _is_picture(value: ir.Value) -> bool:
    node = value.producer()
    if (
        value.shape is None
        or not _is_plane(value)
        or (node is not None and node.op_type in _SHARES)
    ):
        return False
    return value.shape[1] in _COLOURS


def _is_plane(value: ir.Value) -> bool:
    """Whether ``value`` is [N, C, H, W] of real numbers, of some height and width."""
    if value.dtype is None or not is_float(value.dtype.numpy()) or value.shape is None:
        return False
    sizes = list(value.shape)[2:]
    return len(sizes) == 2 and all(not isinstance(each, int) or each >= _SMALLEST for each in sizes)
