"""The rule table of the fold: one entry an op, saying what the op means on integer codes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxfold.passes.fold.lowering import Lowering, Refusal
from onnxfold.passes.fold.rules import (
    elementwise,
    embeddings,
    indices,
    linear,
    movement,
    normalization,
    pooling,
    recurrent,
    reductions,
    resize,
)
from onnxfold.passes.fold.types import TypeState

FoldRule = Callable[[ir.Node, TypeState], Lowering | Refusal | None]
"""Looks at a node and at the types of its inputs; None where quantization does not touch it.

Records the types of the outputs it decides about.
"""

RULES: dict[str, FoldRule] = {
    **linear.RULES,
    **elementwise.RULES,
    **movement.RULES,
    **embeddings.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **indices.RULES,
    **recurrent.RULES,
    **reductions.RULES,
    **resize.RULES,
}
"""Rules of ai.onnx ops by op type; an op without a rule ends propagation there."""

CODE_RULES = indices.ON_CODES | movement.ON_CODES | pooling.ON_CODES | resize.ON_CODES
"""The ops that mean the same on codes standing between QuantizeLinear and DequantizeLinear."""
