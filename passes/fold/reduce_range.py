"""The pass that gives weights head room, so that u8 x s8 products are exact on any x86 machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_scalar
from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.lowering import Linear, Operand
from onnxfold.passes.fold.plan import Plan, make_plan
from onnxfold.passes.fold.reduced_weights import WrittenWeights
from onnxfold.passes.fold.targets.table import TARGETS
from onnxfold.passes.fold.types import DEQUANTIZE, is_dequantize, is_quantize
from onnxfold.passes.fold.unread import erase_unread
from onnxfold.passes.pair_saturation import (
    SAFE_MAGNITUDE,
    pair_limits,
)
from onnxfold.passes.rewriter import Rewriter

_LARGEST = 127

_REAL_BOUNDS: dict[str, tuple[float, float]] = {
    "HardSigmoid": (0.0, 1.0),
    "Relu": (0.0, np.inf),
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
}
"""What the results of these ops are limited to."""


@dataclass(frozen=True)
class ReduceRange(Pass):
    """Give int8 weights 7 bits where a product with uint8 codes could saturate.

    Without VNNI, x86 machines add pairs of u8 x s8 products in a saturating int16, which ruins
    results silently. The weights of a layer in which that is possible are rounded to fewer codes,
    at a larger scale: channel by channel where each has its scale, else all of them. Biases keep
    their real value. To be run on a Q/DQ graph, before ``fold-qdq``.

    Attributes:
        magnitude: Largest code of the weights it writes. Up to 64 no two products saturate,
            whichever are added first; above (up to 127) those that ONNX Runtime's kernels add
            are kept from it, which loses less.
        when: ``possible`` for layers in which some data can saturate, ``always`` for all layers
            with larger codes.
    """

    magnitude: int = SAFE_MAGNITUDE
    when: Literal["possible", "always"] = "possible"

    name: ClassVar[str] = "reduce-range"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Reduce the weights of each linear op that the fold would make integer.

        Raises:
            UsageError: ``magnitude`` is not in 1..127.
        """
        if not 1 <= self.magnitude <= _LARGEST:
            raise UsageError(f"reduce-range: magnitude is {self.magnitude}, not in 1..{_LARGEST}")
        plan = make_plan(model, rewriter.scopes, TARGETS["qdq"])
        reduced: dict[tuple[object, ...], ir.Value] = {}
        for node in plan.order:
            linear = plan.lowerings.get(node)
            if isinstance(linear, Linear) and linear.operator is node:
                self._reduce(linear, plan, rewriter, reduced)

    def _reduce(
        self,
        linear: Linear,
        plan: Plan,
        rewriter: Rewriter,
        reduced: dict[tuple[object, ...], ir.Value],
    ) -> None:
        node, written = linear.operator, plan.types.get(linear.operator.inputs[1])
        if linear.w.codes is None or written is None or written.codes is None:
            return
        if _is_depthwise(linear):
            return
        weights = WrittenWeights(node, written, _code_range(linear.x, plan))
        rows = weights.summed(_emitted(linear))
        saturates = weights.saturating(_emitted(linear))
        chosen = saturates if self.when == "possible" else weights.beyond(self.magnitude)
        if not chosen.any():
            return
        factors = weights.factors(chosen, self.magnitude)
        key = (node.graph, node.inputs[1], factors.tobytes())
        with rewriter.step("reduce-range", node):
            if key not in reduced:
                reduced[key] = _write(weights, factors, rewriter)
            units = linear.x.type.scale * (written.type.scale * factors)
            replaced = [node.inputs[1], *_keep_biases(linear, plan, rewriter, units)]
            rewriter.set_input(node, 1, reduced[key])
        for value in replaced:
            erase_unread(value, rewriter)
        lower, upper = pair_limits(rows, *weights.data)
        reach = int(max(np.max(-lower), np.max(upper)))
        rewriter.remark(
            node,
            f"{np.count_nonzero(saturates)} of {saturates.size} channels can saturate without VNNI "
            f"(two products reach {reach}): {np.count_nonzero(factors != 1)} have smaller codes "
            f"now, at {weights.signal_to_noise(factors):.1f} dB",
        )


def _emitted(linear: Linear) -> Array:
    """The codes the fold would write down, in the layout of the op's input."""
    codes = linear.w.codes
    assert codes is not None
    return np.transpose(codes) if linear.operator.attributes.get_int("transB", 0) else codes


def _is_depthwise(linear: Linear) -> bool:
    """Whether the kernels multiply in 32 bits: they do where groups have one channel each."""
    codes, node = linear.w.codes, linear.operator
    if node.op_type != "Conv" or codes is None:
        return False
    return codes.shape[1] == 1 and codes.shape[0] == node.attributes.get_int("group", 1)


def _write(weights: WrittenWeights, factors: Array, rewriter: Rewriter) -> ir.Value:
    """The DequantizeLinear of the divided weights, in the layout that the op reads."""
    node, affine = weights.node, weights.written.type
    old = node.inputs[1]
    assert old is not None
    codes = weights.divided(factors).astype(np.int8)
    scale: Array = np.asarray(
        affine.scale * (factors[0] if affine.per_tensor else factors), np.float32
    )
    name = f"{old.name}_reduced"
    inputs = [
        rewriter.constant(node, codes, name=f"{name}_codes"),
        rewriter.constant(node, scale, name=f"{name}_scale"),
        rewriter.constant(node, np.zeros(scale.shape, np.int8), name=f"{name}_zero_point"),
    ]
    return rewriter.insert(
        node,
        DEQUANTIZE,
        inputs,
        name=name,
        attributes=None if affine.axis is None else {"axis": affine.axis},
        dtype=ir.DataType.FLOAT,
        shape=codes.shape,
    )


def _keep_biases(
    linear: Linear, plan: Plan, rewriter: Rewriter, units: Array
) -> Sequence[ir.Value]:
    """Write quantized biases as real numbers; returns what they replace.

    Their scale was that of the old weights, and ONNX Runtime reads some biases by that rule. They
    are rounded to ``units``, those of the new weights, as integer kernels will hold them.
    """
    replaced: list[ir.Value] = []
    for node in linear.covered:
        first = 2 if node is linear.operator else 0
        for index, value in enumerate(node.inputs[first:], start=first):
            known = plan.types.get(value)
            if value is None or known is None or known.codes is None:
                continue
            real = known.type.dequantize(known.codes)
            if linear.operator.op_type != "Gemm" and units.size in (1, real.size):
                steps = np.rint(real.reshape(-1) / units.reshape(-1))
                real = np.asarray(steps * units.reshape(-1), np.float32).reshape(real.shape)
            constant = rewriter.constant(node, real, name=f"{value.name}_real")
            rewriter.set_input(node, index, constant)
            replaced.append(value)
    return replaced


def _code_range(operand: Operand, plan: Plan) -> tuple[int, int]:
    """The codes (as uint8) that the data can take, as far as the op before its quantizer says."""
    shift = 128 if operand.type.dtype == ir.DataType.INT8 else 0
    value = operand.value
    producer = None if value is None else value.producer()
    for is_expected in (is_dequantize, is_quantize):
        if producer is None or not is_expected(producer) or not _has(operand.type, producer, plan):
            return 0, 255
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    bounds = np.asarray(_real_bounds(producer), np.float32)
    low, high = operand.type.quantize(bounds).astype(np.int64) + shift
    return int(low), int(high)


def _has(affine: AffineType, node: ir.Node, plan: Plan) -> bool:
    written = plan.types.parameters(node)
    return written is not None and written.same_as(affine)


def _real_bounds(node: ir.Node | None) -> tuple[float, float]:
    if node is None or node.domain:
        return -np.inf, np.inf
    if node.op_type != "Clip":
        return _REAL_BOUNDS.get(node.op_type, (-np.inf, np.inf))
    bounds = [-np.inf, np.inf]
    for index, value in enumerate(node.inputs[1:3]):
        number = constant_scalar(value)
        bounds[index] = bounds[index] if number is None else float(number)
    return bounds[0], bounds[1]
