"""Pass ``fold-scaler``: turns the Scaler before a linear operator into arithmetic that folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.channel_affine import only_consumer
from onnxfold.passes.constants import Array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_DOMAIN = "ai.onnx.ml"


@rule("scaler-to-arithmetic", f"{_DOMAIN}::Scaler")
def _take_apart(node: ir.Node, rewriter: Rewriter) -> None:
    source = node.inputs[0]
    if source is None or source.dtype != ir.DataType.FLOAT:
        return
    end = _behind_cast(node)
    linear = LinearOp.match(only_consumer(end.outputs[0]))
    if linear is None or linear.data is not end.outputs[0]:
        return
    offset, scale = (_numbers(node, each, linear.in_channels) for each in ("offset", "scale"))
    if offset is None or scale is None or source.shape is None or len(source.shape) != 2:
        return
    value = source
    for op_type, numbers in (("Sub", offset), ("Mul", scale)):
        constant = rewriter.constant(node, numbers, name=f"{node.outputs[0].name}_{op_type}")
        value = rewriter.insert(
            node,
            op_type,
            [value, constant],
            name=f"{node.outputs[0].name}_{op_type.lower()}",
            dtype=ir.DataType.FLOAT,
            shape=source.shape,
        )
    rewriter.replace_node(end, [value])
    if end is not node:
        rewriter.erase(node)


def _behind_cast(node: ir.Node) -> ir.Node:
    """The Cast that follows, where it does nothing: a Scaler always puts out float32."""
    cast = only_consumer(node.outputs[0])
    if cast is None or cast.op_type != "Cast" or cast.domain:
        return node
    return cast if cast.attributes.get_int("to", 0) == ir.DataType.FLOAT else node


@dataclass(frozen=True)
class FoldScaler(PatternPass):
    """Scaler of ai.onnx.ml before a product with constant weights becomes Sub and Mul.

    ``fold-scale-bias`` then makes them part of the weights and the bias. So converters write the
    standardization of features, scikit-learn's StandardScaler. Left alone: what anything else
    reads, and data that is no matrix of float32.
    """

    name: ClassVar[str] = "fold-scaler"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """One rule."""
        return (_take_apart,)


def _numbers(node: ir.Node, name: str, channels: int) -> Array | None:
    """The attribute, one number or one for each feature, as float32; None where it is neither."""
    found = np.array(node.attributes.get_floats(name, ()), np.float32)
    return found if found.size in (1, channels) and np.all(np.isfinite(found)) else None
