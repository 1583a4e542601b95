"""infer-shapes: write down the types and shapes that follow from the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.type_inference import infer_model_types


@dataclass(frozen=True)
class InferShapes(Pass):
    """Infer element types and shapes of all intermediate values, propagating shape arithmetic.

    Types that the model declares for graph inputs and outputs are never changed. What it declares
    for intermediate values is checked: where inference finds another dimension, that one is taken.
    Local functions are left out, since a function has no types before it is called.
    """

    name: ClassVar[str] = "infer-shapes"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Infer on a copy without weights, and write the results into the model."""
        infer_model_types(model, rewriter)
