"""The pass that turns fake-quantized graphs into integer arithmetic."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.accumulate import has_coarse_bias
from onnxfold.passes.fold.costs import CostTable, read_costs
from onnxfold.passes.fold.default_costs import DEFAULT_COSTS
from onnxfold.passes.fold.guards import guard_float_ops
from onnxfold.passes.fold.islands import remark_asymmetric, remark_refusals
from onnxfold.passes.fold.lower import Lowerer
from onnxfold.passes.fold.lowering import Linear, Lowering
from onnxfold.passes.fold.placement import place
from onnxfold.passes.fold.plan import Plan, make_plan
from onnxfold.passes.fold.targets.edge_channels import add_edge_channels
from onnxfold.passes.fold.targets.flat_means import read_means_flat
from onnxfold.passes.fold.targets.float_kernels import FloatKernels
from onnxfold.passes.fold.targets.merged_pixels import merge_pixels
from onnxfold.passes.fold.targets.packed_weights import keep_weights_unpacked, pack_weights
from onnxfold.passes.fold.targets.padded_channels import pad_channels
from onnxfold.passes.fold.targets.pooled_concat import pool_before_joining
from onnxfold.passes.fold.targets.qdq import REAL_BIASES
from onnxfold.passes.fold.targets.single_channel import read_single_channels
from onnxfold.passes.fold.targets.table import TARGETS
from onnxfold.passes.fold.targets.target import Target
from onnxfold.passes.fold.unguard import unguard
from onnxfold.passes.fold.weights import dequantize_weights
from onnxfold.passes.kept_remarks import keep_remarks
from onnxfold.passes.rewriter import Rewriter

_MOST_ROUNDS = 3
NO_COSTS = "none"
"""Instead of a table: every layer that can be is computed by integer kernels."""


@dataclass(frozen=True)
class FoldQdq(Pass):
    """Fold QuantizeLinear and DequantizeLinear into integer ops, or into canonical Q/DQ form.

    Affine types are propagated from DequantizeLinear forwards and asked for from QuantizeLinear
    backwards; an op that cannot be done in integers exactly stays float, with a remark.

    Attributes:
        target: ``ort`` for ONNX Runtime's integer kernels, ``standard`` for ai.onnx only without
            float ops, ``qdq`` for canonical Q/DQ, ``integer`` without float constants either.
        costs: For ``ort``, a file of costs that ``onnxfold tune`` wrote, by which layers go to
            integer or float kernels, with the same codes either way; ``none`` for integer kernels
            throughout; by default a table that is built in.
        biases: For ``qdq``: ``int32`` codes behind a DequantizeLinear, or ``float`` as TensorRT
            wants them, which then says where codes are not as that wants them.
    """

    target: Literal["ort", "standard", "qdq", "integer"] = "ort"
    costs: str = ""
    biases: Literal["int32", "float"] = "int32"

    name: ClassVar[str] = "fold-qdq"
    contract: ClassVar[Contract] = Contract.INTEGER

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Plan the whole model, carry the plan out, and say what stayed float."""
        target = self._target()
        unguard(model, rewriter)
        plan = self._lower(model, rewriter)
        for _ in range(_MOST_ROUNDS):
            if not plan.again:
                break
            plan = self._lower(model, rewriter)
        guarded = guard_float_ops(plan, rewriter, float_weights=target.dequantizes_weights)
        if target.dequantizes_weights:
            dequantize_weights(plan, rewriter, guarded)
        if self.target == "ort":
            pack_weights(plan, rewriter)
            read_means_flat(plan, rewriter)
            pool_before_joining(plan, rewriter, _costs(self.costs) or DEFAULT_COSTS)
            merge_pixels(plan, rewriter, _costs(self.costs) or DEFAULT_COSTS)
            pad_channels(plan, rewriter, _costs(self.costs) or DEFAULT_COSTS)
            add_edge_channels(plan, rewriter, _costs(self.costs) or DEFAULT_COSTS)
            read_single_channels(plan, rewriter)
        else:
            keep_weights_unpacked(plan, rewriter)
        remark_refusals(plan, rewriter)
        if self.biases == "float":
            remark_asymmetric(plan, rewriter)
        keep_remarks(model, rewriter.remarks, frozenset(plan.order))

    def _target(self) -> Target:
        """The target; float biases are a form of ``qdq``.

        Raises:
            UsageError: Another target has no such form.
        """
        if self.biases == "int32":
            return TARGETS[self.target]
        if self.target != "qdq":
            raise UsageError(f"float biases are for target qdq, not {self.target}")
        return REAL_BIASES

    def _lower(self, model: ir.Model, rewriter: Rewriter) -> Plan:
        target = self._target()
        plan = make_plan(model, rewriter.scopes, target)
        if self.target == "ort":
            target = FloatKernels(target, self._in_float(plan)).target()
        Lowerer(plan, rewriter, target).run()
        return plan

    def _in_float(self, plan: Plan) -> Collection[Lowering]:
        """What goes to float kernels: because it is faster, or to keep the bias exact."""
        costs = _costs(self.costs)
        faster = frozenset[Lowering]() if costs is None else place(plan, costs)
        return faster | {
            each
            for each in plan.lowerings.values()
            if isinstance(each, Linear)
            and each.operator.op_type == "Conv"
            and has_coarse_bias(each)
        }


def _costs(name: str) -> CostTable | None:
    """The table of that name; None for integer kernels throughout.

    Raises:
        UsageError: The file cannot be read, or is no table.
    """
    if name == NO_COSTS:
        return None
    if not name:
        return DEFAULT_COSTS
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name}: cannot read the table of costs: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: no table of costs, but binary; write one with tune") from error
    return read_costs(text, name)
