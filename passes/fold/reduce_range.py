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
from onnxfold.passes.fold.targets import TARGETS
from onnxfold.passes.fold.types import DEQUANTIZE, Quantized, is_dequantize, is_quantize
from onnxfold.passes.pair_saturation import (
    SAFE_MAGNITUDE,
    can_saturate,
    pair_limits,
    summing_order,
)
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_REAL_BOUNDS: dict[str, tuple[float, float]] = {
    "HardSigmoid": (0.0, 1.0),
    "Relu": (0.0, np.inf),
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
}
"""What the results of these ops are limited to."""


@dataclass(frozen=True)
class ReduceRange(Pass):
    """Halve int8 weights (7 bits) where a product with uint8 codes could saturate.

    Without VNNI, x86 machines add pairs of u8 x s8 products in a saturating int16, which ruins
    results silently. The weights of a layer in which that is possible are rounded to codes half
    as large and their scale is doubled: channel by channel where each has its scale, else all of
    them. Biases keep their real value. To be run on a Q/DQ graph, before ``fold-qdq``.

    Attributes:
        magnitude: Largest code of the weights it writes, at most 64.
        when: ``possible`` for layers in which some data can saturate, ``always`` for all layers
            with larger codes (for machines that add more than two products before widening).
    """

    magnitude: int = SAFE_MAGNITUDE
    when: Literal["possible", "always"] = "possible"

    name: ClassVar[str] = "reduce-range"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Reduce the weights of each linear op that the fold would make integer.

        Raises:
            UsageError: ``magnitude`` is not in 1..64.
        """
        if not 1 <= self.magnitude <= SAFE_MAGNITUDE:
            raise UsageError(
                f"reduce-range: magnitude is {self.magnitude}; larger codes than "
                f"{SAFE_MAGNITUDE} can saturate"
            )
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
        weights = linear.w.codes
        if weights is None or written is None or written.codes is None or _is_depthwise(linear):
            return
        rows = summing_order(weights, axis=0 if node.op_type == "Conv" else -1)
        channels = weights.shape[0] if node.op_type == "Conv" else weights.shape[-1]
        limits = _code_range(linear.x, plan)
        # Batched weights: one channel stands for the same column of all matrices.
        saturates = can_saturate(rows, *limits).reshape(-1, channels).any(axis=0)
        centred = _centred(written, _channel_axis(node, written.codes))
        chosen = saturates if self.when == "possible" else _beyond(centred, self.magnitude)
        if not chosen.any():
            return
        shifts = np.where(chosen, _shifts(centred, self.magnitude), 0)
        if written.type.per_tensor:
            shifts = np.full(channels, np.max(_shifts(centred, self.magnitude)))
        key = (node.graph, node.inputs[1], shifts.tobytes())
        with rewriter.step("reduce-range", node):
            if key not in reduced:
                reduced[key] = _write(node, written, shifts, rewriter)
            replaced = [node.inputs[1], *_keep_biases(linear, plan, rewriter)]
            rewriter.set_input(node, 1, reduced[key])
        for value in replaced:
            _erase_unread(value, rewriter)
        lower, upper = pair_limits(rows, *limits)
        reach = int(max(np.max(-lower), np.max(upper)))
        loss = _signal_to_noise(centred, shifts)
        rewriter.remark(
            node,
            f"{np.count_nonzero(saturates)} of {channels} channels can saturate without VNNI (two "
            f"products reach {reach}): {np.count_nonzero(shifts)} have smaller codes now, at "
            f"{loss:.1f} dB",
        )


def _is_depthwise(linear: Linear) -> bool:
    """Whether the kernels multiply in 32 bits: they do where groups have one channel each."""
    codes, node = linear.w.codes, linear.operator
    if node.op_type != "Conv" or codes is None:
        return False
    return codes.shape[1] == 1 and codes.shape[0] == node.attributes.get_int("group", 1)


def _channel_axis(node: ir.Node, codes: Array) -> int:
    by_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    return 0 if by_rows else codes.ndim - 1


def _centred(written: Quantized, axis: int) -> Array:
    """Codes less their zero point, one row a channel; int64."""
    codes = written.codes
    assert codes is not None
    rows = np.moveaxis(codes.astype(np.int64), axis, 0).reshape(codes.shape[axis], -1)
    return rows - written.type.zero_point.astype(np.int64).reshape(-1, 1)


def _beyond(centred: Array, magnitude: int) -> Array:
    return np.abs(centred).max(axis=1, initial=0) > magnitude


def _shifts(centred: Array, magnitude: int) -> Array:
    """By which power of two the codes of each channel are divided to fit."""
    shifts: Array = np.zeros(len(centred), np.int64)
    while (beyond := _beyond(_divided(centred, shifts), magnitude)).any():
        shifts = shifts + beyond
    return shifts


def _divided(centred: Array, shifts: Array) -> Array:
    """Each channel's codes divided by 2^shift, ties alternately down and up.

    Which way a tie goes makes no difference to the error's size; alternating, they cancel in the
    sum over a kernel, as neighbouring activations are alike.
    """
    quotients: Array = centred / np.exp2(shifts).reshape(-1, 1)
    down: Array = np.floor(quotients)
    ties = quotients - down == 0.5
    up = np.cumsum(ties, axis=1) % 2 == 0
    return np.where(ties, down + up, np.rint(quotients)).astype(np.int64)


def _signal_to_noise(centred: Array, shifts: Array) -> float:
    """SQNR of the reduced weights against the original ones, in dB."""
    noise = np.sum((centred - _divided(centred, shifts) * np.exp2(shifts).reshape(-1, 1)) ** 2)
    return float(10 * np.log10(np.sum(centred**2) / noise)) if noise else float("inf")


def _write(node: ir.Node, written: Quantized, shifts: Array, rewriter: Rewriter) -> ir.Value:
    """The DequantizeLinear of the reduced weights, in the layout that ``node`` reads."""
    codes, affine, old = written.codes, written.type, node.inputs[1]
    assert codes is not None
    assert old is not None
    axis = _channel_axis(node, codes)
    rows = _divided(_centred(written, axis), shifts)
    moved = [codes.shape[axis], *(size for i, size in enumerate(codes.shape) if i != axis)]
    reduced = np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis)).astype(np.int8)
    powers = np.exp2(shifts[0] if affine.per_tensor else shifts)
    scale: Array = np.asarray(affine.scale * powers, np.float32)
    name = f"{old.name}_reduced"
    inputs = [
        rewriter.constant(node, reduced, name=f"{name}_codes"),
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


def _keep_biases(linear: Linear, plan: Plan, rewriter: Rewriter) -> Sequence[ir.Value]:
    """Write quantized biases as the real numbers they are; returns what they replace.

    Their scale was that of the old weights, and ONNX Runtime reads some biases by that rule.
    """
    replaced: list[ir.Value] = []
    for node in linear.covered:
        first = 2 if node is linear.operator else 0
        for index, value in enumerate(node.inputs[first:], start=first):
            known = plan.types.get(value)
            if value is None or known is None or known.codes is None:
                continue
            real = known.type.dequantize(known.codes)
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


def _erase_unread(value: ir.Value | None, rewriter: Rewriter) -> None:
    """Erase the constant subgraph that ends in ``value``, as far as nothing reads it."""
    node = None if value is None else value.producer()
    if value is None or use_count(value) or value.is_graph_output():
        return
    if node is None:
        if value.is_initializer() and not value.is_graph_input():
            with rewriter.step("remove-replaced-constant"):
                rewriter.remove_initializer(value)
        return
    if any(use_count(each) or each.is_graph_output() for each in node.outputs):
        return
    inputs = [each for each in node.inputs if each is not None]
    with rewriter.step("remove-replaced", node):
        rewriter.erase(node)
    for each in dict.fromkeys(inputs):
        _erase_unread(each, rewriter)
