"""The pass that turns fake-quantized graphs into integer arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.fold.guards import guard_float_ops
from onnxfold.passes.fold.islands import remark_refusals
from onnxfold.passes.fold.lower import Lowerer
from onnxfold.passes.fold.plan import make_plan
from onnxfold.passes.fold.targets import TARGETS
from onnxfold.passes.fold.weights import dequantize_weights
from onnxfold.passes.rewriter import Rewriter


@dataclass(frozen=True)
class FoldQdq(Pass):
    """Fold QuantizeLinear and DequantizeLinear into integer ops, or into canonical Q/DQ form.

    Affine types are propagated from DequantizeLinear forwards and asked for from QuantizeLinear
    backwards; an op that cannot be done in integers exactly stays float, with a remark.

    Attributes:
        target: ``ort`` for ONNX Runtime's integer kernels, ``standard`` for ai.onnx only without
            float ops, ``qdq`` for canonical Q/DQ, ``integer`` without float constants either.
    """

    target: Literal["ort", "standard", "qdq", "integer"] = "ort"

    name: ClassVar[str] = "fold-qdq"
    contract: ClassVar[Contract] = Contract.INTEGER

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Plan the whole model, carry the plan out, and say what stayed float."""
        target = TARGETS[self.target]
        plan = make_plan(model, rewriter.scopes, target)
        Lowerer(plan, rewriter, target).run()
        guarded = guard_float_ops(plan, rewriter, float_weights=target.dequantizes_weights)
        if target.dequantizes_weights:
            dequantize_weights(plan, rewriter, guarded)
        remark_refusals(plan, rewriter)
