"""drop-unused-inputs: take away inputs that nothing reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count


@dataclass(frozen=True)
class DropUnusedInputs(Pass):
    """Remove the inputs of the main graph that no node reads and no output is.

    Callers have to stop feeding them: ONNX Runtime refuses inputs that it does not know.
    """

    name: ClassVar[str] = "drop-unused-inputs"
    contract: ClassVar[Contract] = Contract.EXACT

    @property
    def restores_interface(self) -> bool:
        """It takes out inputs."""
        return True

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Remove what is not read."""
        for value in list(model.graph.inputs):
            if use_count(value) or value.is_graph_output() or value.is_initializer():
                continue
            with rewriter.step("drop-input"):
                rewriter.remove_input(value)
