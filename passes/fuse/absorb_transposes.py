"""absorb-transposes: transposes move past sums too, and into the weights of products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxfold.passes.base import Contract
from onnxfold.passes.layouts.carry import Handler
from onnxfold.passes.layouts.operators import ROUNDING
from onnxfold.passes.layouts.rules import TransposeMover


@dataclass(frozen=True)
class AbsorbTransposes(TransposeMover):
    """Do what ``move-transposes`` does also where the order of additions changes with the layout.

    Beyond its operators: Relu, Clip and maxima (which of -0 and 0 they choose depends on where an
    element lies), sums and means, Softmax, transcendental functions, normalizations whose channels
    stay second, and products with constants, quantized or not: of channels-last data that a Reshape
    flattened for them (the rows of the weights take the other order), and those that a Reshape
    unfolds into channels-last data (their columns do).
    """

    name: ClassVar[str] = "absorb-transposes"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def handlers(self) -> dict[str, Handler]:
        """What computes the same but for rounding."""
        return ROUNDING
