"""Pass ``round-weights``: gives quantized weights the codes that were learned for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear_fold import replace_constant
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.weight_codes import WeightCodes
from onnxfold.passes.quantize.weight_rounding import WeightRounding
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import use_count


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Write learned codes into the weights of a model with Q/DQ pairs.

    Which way each weight is rounded can be learned so that a layer's outputs change least (Nagel et
    al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020). Scales, zero points
    and biases stay as they are.

    Attributes:
        rounding: The codes, from ``onnxfold.runtime.calibrate.learned_rounding``, learned on this
            very graph.
    """

    rounding: WeightRounding

    name: ClassVar[str] = "round-weights"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Round the weights of the main graph's linear operators that the rounding names.

        Raises:
            UsageError: The codes are those of another model.
        """
        nodes = {node_name(node): node for node in model.graph}
        for name, codes in self.rounding.items():
            if name not in nodes:
                hint = did_you_mean(name, nodes)
                raise UsageError(f"round-weights: the model has no node '{name}'{hint}")
            found = WeightCodes.match(nodes[name])
            if found is None or not _fit(found, codes):
                raise UsageError(f"round-weights: the codes of node '{name}' are another model's")
            if not np.array_equal(codes, found.stored):
                with rewriter.step("round-weights", nodes[name]):
                    stored = codes.astype(found.stored.dtype)
                    replace_constant(rewriter, found.dequantize, 0, stored)


def _fit(found: WeightCodes, codes: Array) -> bool:
    """Whether they can be the codes of these weights, which nothing else may read."""
    if codes.shape != found.stored.shape or use_count(found.dequantize.outputs[0]) != 1:
        return False
    low, high = INTEGER_LIMITS[ir.DataType.from_numpy(found.stored.dtype)]
    return not codes.size or (codes.min() >= low and codes.max() <= high)
