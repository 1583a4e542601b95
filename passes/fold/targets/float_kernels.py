"""Integer layers on float kernels: the same codes, computed from centred codes held as float32.

A layer y = s_x s_w sum (q_x - z_x) q_w + b is rounded to codes of scale s_y. In units of s_y, with
weights s_x s_w q_w / s_y prepared ahead of time, that is one float convolution of q_x - z_x and
one rounding. Nothing here is a DequantizeLinear in front of the convolution, which ONNX Runtime
would take for a quantized operator and quantize again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.accumulate import has_coarse_bias
from onnxfold.passes.fold.costs import FASTER_IN_FLOAT
from onnxfold.passes.fold.lowering import Linear, Lowering, Move
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.padding import merge_padding
from onnxfold.passes.fold.targets.target import Target
from onnxfold.passes.fold.types import QUANTIZE

_FLOAT = ir.DataType.FLOAT
_COARSE_BIAS = "its bias falls between the codes of an int32 bias, which are far apart here"
_ROUND_THE_BIAS = "quantize the bias to int32 in units of the scales of data and weights"


class FloatKernels:
    """A target that computes some lowerings in float.

    What it writes gives codes like any other; beside them it remembers the numbers they were
    rounded from, so that the next float kernel need not come back from codes. Codes that nobody
    reads then are dead, and removed with what the fold replaced.
    """

    def __init__(self, target: Target, in_float: Collection[Lowering]) -> None:
        self._target = target
        self._in_float = in_float
        # By the value that holds the codes: the number in units of the scale, minus zero point.
        self._unrounded: dict[ir.Value, ir.Value] = {}
        self._centred: dict[tuple[ir.Graph | ir.Function | None, ir.Value], ir.Value] = {}
        self._shifted: dict[ir.Value, tuple[ir.Value, AffineType]] = {}

    def target(self) -> Target:
        """The target that does so."""
        return replace(self._target, write=self.write, shift=self.shift)

    def write(self, lowering: Lowering, build: Builder) -> Sequence[ir.Value]:
        """See ``target.Write``."""
        if lowering in self._in_float:
            if isinstance(lowering, Linear):
                return [self._convolution(lowering, build)]
            if isinstance(lowering, Move) and self._source(lowering, build) is not None:
                return [self._pool(lowering, build)]
        return self._target.write(lowering, build)

    def shift(
        self, codes: ir.Value, old: AffineType, new: AffineType, like: ir.Value, build: Builder
    ) -> ir.Value:
        """See ``target.Shift``; float kernels read the codes as they were before."""
        shifted = self._target.shift(codes, old, new, like, build)
        self._shifted[shifted] = codes, old
        return shifted

    def _source(self, move: Move, build: Builder) -> ir.Value | None:
        return self._unrounded.get(build.codes_of(move.reads[0]))

    def _convolution(self, linear: Linear, build: Builder) -> ir.Value:
        assert linear.type is not None
        assert linear.w.codes is not None
        output, name = linear.output, linear.output.name or "conv"
        codes, attributes = merge_padding(linear, build.operand(linear.x, name))
        per_channel = [-1] + [1] * (linear.w.codes.ndim - 1)
        step = float(linear.x.type.scale) / float(linear.type.scale)
        scale = linear.w.type.scale.astype(np.float64).reshape(-1) * step
        centred = linear.w.codes.astype(np.float64) - float(linear.w.type.zero_point.reshape(-1)[0])
        weights = centred * scale.reshape(per_channel)
        inputs = [
            self._centred_codes(codes, linear.x.type, linear.w.codes.ndim, build),
            build.constant(weights.astype(np.float32), f"{name}_weights"),
        ]
        if linear.bias is not None:
            bias = linear.bias / float(linear.type.scale)
            inputs.append(build.constant(bias.astype(np.float32), f"{name}_bias"))
        real = build.insert("Conv", inputs, output, _FLOAT, attributes=attributes)
        if has_coarse_bias(linear):
            build.rewriter.remark(linear.operator, _COARSE_BIAS, _ROUND_THE_BIAS)
        else:
            build.rewriter.remark(linear.operator, FASTER_IN_FLOAT)
        ones = AffineType(np.ones((), np.float32), linear.type.zero_point, linear.type.dtype)
        rounded = build.quantize(real, ones, output)
        self._unrounded[rounded] = real
        return rounded

    def _pool(self, move: Move, build: Builder) -> ir.Value:
        """MaxPool before the rounding, which commutes with it."""
        source, output = self._source(move, build), move.node.outputs[0]
        known = build.types.get(move.reads[0])
        assert source is not None
        assert known is not None
        inputs: list[ir.Value | None] = [source, *move.node.inputs[1:]]
        real = build.insert(
            move.node.op_type, inputs, output, _FLOAT, attributes=move.node.attributes
        )
        rounded = self._unmoved_quantize(real, known.type, output, build)
        self._unrounded[rounded] = real
        return rounded

    def _unmoved_quantize(
        self, real: ir.Value, affine: AffineType, output: ir.Value, build: Builder
    ) -> ir.Value:
        """QuantizeLinear that ONNX Runtime does not move in front of the MaxPool.

        It moves those with one scale; the scale of each channel is 1 all the same.
        """
        shape = output.shape
        channels = None if shape is None or len(shape) < 2 else shape[1]
        if not isinstance(channels, int):
            rounded = build.insert("Round", [real], output, _FLOAT)
            ones = AffineType(np.ones((), np.float32), affine.zero_point, affine.dtype)
            return build.quantize(rounded, ones, output)
        inputs = [
            real,
            build.constant(np.ones(channels, np.float32), "ones"),
            build.constant(
                np.full(channels, affine.zero_point, affine.dtype.numpy()), "zero_points"
            ),
        ]
        return build.insert(QUANTIZE, inputs, output, affine.dtype, attributes={"axis": 1})

    def _centred_codes(
        self, codes: ir.Value, affine: AffineType, rank: int, build: Builder
    ) -> ir.Value:
        """Codes minus their zero point, as float32."""
        key = (build.anchor.graph, codes)
        if key not in self._centred:
            real = self._unrounded.get(codes)
            self._centred[key] = (
                self._from_codes(codes, affine, rank, build)
                if real is None
                else self._rounded(real, affine, build)
            )
        return self._centred[key]

    def _rounded(self, real: ir.Value, affine: AffineType, build: Builder) -> ir.Value:
        """The number rounded to codes: limits first, which a convolution takes in."""
        zero_point = float(affine.zero_point)
        low, high = (
            build.constant(np.array(limit - zero_point, np.float32), "code_limit")
            for limit in affine.limits
        )
        within = build.insert("Clip", [real, low, high], real, _FLOAT)
        return build.insert("Round", [within], real, _FLOAT)

    def _from_codes(
        self, codes: ir.Value, affine: AffineType, rank: int, build: Builder
    ) -> ir.Value:
        codes, affine = self._shifted.get(codes, (codes, affine))
        attributes = {"to": int(_FLOAT)}
        real = build.insert("Cast", [codes], codes, _FLOAT, attributes=attributes)
        if affine.symmetric:
            return real
        # Of full rank: a scalar is ten times slower on maps whose last axes have size 1.
        zero_point = np.full([1] * rank, float(affine.zero_point), np.float32)
        zero = build.constant(zero_point, "zero_point_real")
        return build.insert("Sub", [real, zero], codes, _FLOAT)
