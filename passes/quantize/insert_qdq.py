"""Pass ``insert-qdq``: marks a float model as quantized, with Q/DQ pairs and integer weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.quantize.inserter import QdqInserter, QdqSettings
from onnxfold.passes.quantize.placement import Placement, PlacementOptions
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.weights import WeightRanges
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes, label

_QUANTIZED_OPS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"),
        *("QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearMul"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "QAttention"),
    }
)
_PER_CHANNEL_OPSET = 13
_ACTIVATION_TYPES = {"u8": ir.DataType.UINT8, "s8": ir.DataType.INT8}


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantizes weights to int8 and puts a Q/DQ pair on every activation that a range covers.

    An activation has one pair, whoever reads it. If its producer is quantized, every reader reads
    the dequantized value: a convolution whose output is also read in float would fall back to
    float in ONNX Runtime. If its producer is not, readers in float go on reading the exact value.

    Attributes:
        ranges: What values the activations take, from ``onnxfold.runtime.calibrate``.
        activations: Codes of activations, asymmetric, one scale per tensor.
        weights: Codes of weights, symmetric.
        per_channel: One weight scale per output channel instead of one per tensor.
        weight_ranges: ``max`` clips no weight; ``mse`` has the least squared error, channel by
            channel.
        op_types: Operators that may be quantized; empty means all that can be.
        skip: Names of nodes to leave in float (of their first output where they have no name).
        only: Names of the linear nodes to quantize; empty means all.
    """

    ranges: Ranges
    activations: Literal["u8", "s8"] = "u8"
    weights: Literal["s8"] = "s8"
    per_channel: bool = True
    weight_ranges: WeightRanges = "max"
    op_types: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    name: ClassVar[str] = "insert-qdq"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    @property
    def placement_options(self) -> PlacementOptions:
        """The selection, as calibration needs it to know what to observe."""
        return PlacementOptions(self.op_types, self.skip, self.only)

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Quantize the main graph.

        Raises:
            UsageError: The model is quantized already, an option names nothing, or the ranges
                are those of another model.
            PassError: The opset is older than 13.
        """
        _refuse_quantized(model)
        placement = Placement.of(model, self.placement_options, self.ranges)
        if not placement.units:
            self._refuse_foreign_ranges(model)
        elif model.graph.opset_imports.get("", 0) < _PER_CHANNEL_OPSET:
            raise PassError(
                f"insert-qdq needs opset {_PER_CHANNEL_OPSET}, the model has "
                f"{model.graph.opset_imports.get('', 0)}: run upgrade-opset first"
            )
        for each in placement.left_out:
            rewriter.remark(each.node, each.reason, each.advice)
        dtype = _ACTIVATION_TYPES[self.activations]
        settings = QdqSettings(self.ranges, dtype, self.per_channel, self.weight_ranges)
        QdqInserter(settings, placement, rewriter).insert()

    def _refuse_foreign_ranges(self, model: ir.Model) -> None:
        needed = {
            value.name
            for group in Placement.of(model, self.placement_options).groups
            for value in group.observed
        }
        if needed and needed.isdisjoint(self.ranges):
            raise UsageError(
                f"insert-qdq: the ranges name none of the {len(needed)} tensors to quantize: "
                "calibrate this very model"
            )


def _refuse_quantized(model: ir.Model) -> None:
    node = next((each for each in all_nodes(model) if each.op_type in _QUANTIZED_OPS), None)
    if node is not None:
        raise UsageError(
            f"insert-qdq: the model is quantized already ({label(node)}): run fold-qdq instead"
        )
