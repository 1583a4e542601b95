"""Pass ``set-constants``: gives a quantized model the constants that were tuned for it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear_fold import replace_constant
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.tuned_constants import TunedConstants
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean


@dataclass(frozen=True)
class SetConstants(Pass):
    """Write tuned codes, scales and biases into a model with Q/DQ pairs.

    The graph stays what it is; only what is stored changes.

    Attributes:
        constants: What to write, from ``onnxfold.runtime.finetune``, tuned on this very graph.
    """

    constants: TunedConstants

    name: ClassVar[str] = "set-constants"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Replace the constants that nodes of the main graph read, each for that reader only.

        Raises:
            UsageError: The constants are those of another model.
        """
        nodes = {node_name(node): node for node in model.graph}
        for (name, index), array in self.constants.items():
            if name not in nodes:
                hint = did_you_mean(name, nodes)
                raise UsageError(f"set-constants: the model has no node '{name}'{hint}")
            node = nodes[name]
            old = _constant_at(node, index, array)
            if old is None:
                raise UsageError(f"set-constants: input {index} of node '{name}' is another's")
            new = array.astype(old.dtype)
            if not np.array_equal(old, new):
                with rewriter.step("set-constant", node):
                    replace_constant(rewriter, node, index, new)


def fitting(constants: TunedConstants, nodes: Collection[ir.Node]) -> TunedConstants:
    """Those of ``constants`` that ``nodes`` have a place for."""
    named = {node_name(node): node for node in nodes}
    kept = {
        (name, index): array
        for (name, index), array in constants.items()
        if name in named and _constant_at(named[name], index, array) is not None
    }
    return TunedConstants(kept)


def _constant_at(node: ir.Node, index: int, new: Array) -> Array | None:
    """What ``node`` reads at ``index``; None where that is nothing that ``new`` can replace."""
    old = constant_array(node.inputs[index]) if index < len(node.inputs) else None
    return old if old is not None and _holds(old, new) else None


def _holds(old: Array, new: Array) -> bool:
    """Whether ``new`` can be stored in the type and shape of ``old``."""
    if old.shape != new.shape:
        return False
    return np.array_equal(new.astype(old.dtype).astype(new.dtype), new)
