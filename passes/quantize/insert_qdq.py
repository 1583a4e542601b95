"""Pass ``insert-qdq``: marks a float model as quantized, with Q/DQ pairs and integer weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.ir_version import fitting_ir_version
from onnxfold.passes.quantize.input_moments import InputMoments
from onnxfold.passes.quantize.inserter import QdqInserter, QdqSettings
from onnxfold.passes.quantize.overrides import NO_OVERRIDES, Overrides
from onnxfold.passes.quantize.placement import Placement, PlacementOptions
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.schemes import Activations, Scheme, WeightRanges, Weights
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes, label

_QUANTIZED_OPS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("QGemm", "DynamicQuantizeMatMul", "MatMulNBits", "QAttention", "DynamicQuantizeLSTM"),
        *("GatherBlockQuantized", "QEmbedLayerNormalization"),
    }
)
_PER_CHANNEL_OPSET = 13
_MORE_TYPES_OPSET = 21
_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantizes weights to int8 and puts a Q/DQ pair on every activation that a range covers.

    An activation has one pair, whoever reads it. If its producer is quantized, every reader reads
    the dequantized value: a convolution whose output is also read in float would fall back to
    float in ONNX Runtime. If its producer is not, readers in float go on reading the exact value.

    Between operators whose activations have different types a second pair converts. What lies
    between linear operators follows the type of what it reads, unless an override names it.

    Bodies of If, Loop and Scan are quantized as the main graph is. What they capture has its pair
    where it is computed; weights that they capture become codes in each body.

    Attributes:
        ranges: What values the activations take, from ``onnxfold.runtime.calibrate``.
        activations: Codes of activations, one scale per tensor. 16 bits need opset 21 or
            ``domain``; ONNX Runtime has float kernels only between them.
        weights: Codes of weights: signed ones symmetric, unsigned ones with zero points.
        per_channel: One weight scale per output channel instead of one per tensor.
        weight_ranges: ``max`` clips no weight; ``mse`` has the least squared error, channel by
            channel; ``hessian`` has the least error of products, where there are moments.
        moments: Moments of inputs, from ``onnxfold.runtime.calibrate.input_moments``; needed by
            ``hessian``.
        op_types: Operators that may be quantized; empty means all that can be.
        skip: Names of nodes to leave in float (of their first output where they have no name).
        only: Names of the linear nodes to quantize; empty means all.
        block: Weights along the input channels that share a scale, whatever ``per-channel`` says;
            0 for all of them. Needs opset 21; biases stay in float.
        symmetric: Zero points of activations in the middle of the codes: 0 for signed ones.
        domain: ``com.microsoft`` for Q/DQ of 4 and 16 bits that ONNX Runtime has at any opset.
        overrides: Exceptions by operator, name or regular expression, as JSON or a file of it:
            ``[{"regex": "head.*", "precision": 16}, {"name": "conv1", "precision": "float"}]``.
    """

    ranges: Ranges
    activations: Activations = "u8"
    weights: Weights = "s8"
    per_channel: bool = True
    weight_ranges: WeightRanges = "max"
    moments: InputMoments | None = None
    op_types: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    block: int = 0
    symmetric: bool = False
    domain: Literal["ai.onnx", "com.microsoft"] = "ai.onnx"
    overrides: Overrides = NO_OVERRIDES

    name: ClassVar[str] = "insert-qdq"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    @property
    def scheme(self) -> Scheme:
        """The types of codes where no override says otherwise."""
        return Scheme(
            self.activations, self.weights, self.per_channel, self.block, self.weight_ranges
        )

    @property
    def placement_options(self) -> PlacementOptions:
        """The selection, as calibration needs it to know what to observe."""
        return PlacementOptions(self.op_types, self.skip, self.only, self.overrides, self.scheme)

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Quantize the main graph and the bodies in it.

        Raises:
            UsageError: The model is quantized already, an option names nothing, or the ranges
                are those of another model.
            PassError: The opset is too old for the types that were asked for.
        """
        _refuse_quantized(model)
        placement = Placement.of(model, self.placement_options, self.ranges)
        if not placement.units:
            self._refuse_foreign_ranges(model)
        schemes = {unit.scheme: None for unit in placement.units}
        if self.moments is None and any(each.weight_ranges == "hessian" for each in schemes):
            raise UsageError("insert-qdq: weight-ranges=hessian needs the option moments")
        self._check_opset(schemes, model.graph.opset_imports.get("", 0))
        for each in placement.left_out:
            rewriter.remark(each.node, each.reason, each.advice)
        contrib = self.domain == _CONTRIB
        settings = QdqSettings(self.ranges, self.symmetric, contrib, self.moments)
        QdqInserter(settings, placement, rewriter).insert()
        version = fitting_ir_version(model.ir_version, model.opset_imports)
        if version != model.ir_version and any(each.newer_types for each in schemes):
            with rewriter.step("raise-ir-version"):
                rewriter.set_ir_version(version)

    def _check_opset(self, schemes: Iterable[Scheme], opset: int) -> None:
        for scheme in schemes:
            if opset < _PER_CHANNEL_OPSET:
                raise PassError(
                    f"insert-qdq needs opset {_PER_CHANNEL_OPSET}, the model has {opset}: run "
                    "upgrade-opset first"
                )
            if opset >= _MORE_TYPES_OPSET or not scheme.newer_types:
                continue
            if self.domain != _CONTRIB or scheme.block:
                other = "" if scheme.block else ", or choose domain=com.microsoft"
                raise PassError(
                    f"insert-qdq: {scheme.newer_types} needs opset {_MORE_TYPES_OPSET}, the model "
                    f"has {opset}: run upgrade-opset{{to={_MORE_TYPES_OPSET}}} first{other}"
                )

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


def quantized_node(model: ir.Model) -> ir.Node | None:
    """The first node that shows that ``model`` is quantized already; None where it is not."""
    return next((each for each in all_nodes(model) if _is_quantized(each.op_type)), None)


def _is_quantized(op_type: str) -> bool:
    return op_type in _QUANTIZED_OPS or op_type.startswith("QLinear") or "Integer" in op_type


def _refuse_quantized(model: ir.Model) -> None:
    node = quantized_node(model)
    if node is not None:
        raise UsageError(
            f"insert-qdq: the model is quantized already ({label(node)}): run fold-qdq instead"
        )
