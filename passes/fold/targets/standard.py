"""Target ``standard``: ops of ai.onnx only, without a float op among them.

Products are QLinearConv and QLinearMatMul, whose scales are float constants but whose data are
codes; everything else is integer arithmetic (``fixed_point``), a table, or movement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import (
    AveragePool,
    Clamp,
    Concat,
    Curve,
    Extremum,
    Function,
    Interpolation,
    Joined,
    Linear,
    Lookup,
    Lowering,
    Move,
    Operand,
    Product,
    Reduction,
    Refusal,
    Requantize,
    RunningSum,
    Scatter,
    Select,
    Slopes,
    Softmax,
    Sum,
)
from onnxfold.passes.fold.targets import averages, products
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.curves import write_curve, write_slopes
from onnxfold.passes.fold.targets.fixed_point import IntegerOps, Term, centred, rescale
from onnxfold.passes.fold.targets.lookup import write_lookup
from onnxfold.passes.fold.targets.movement import write_clamp, write_move, write_scatter
from onnxfold.passes.fold.targets.tables import look_up
from onnxfold.passes.fold.targets.target import Target
from onnxfold.passes.fold.targets.wide_codes import decline_wide
from onnxfold.passes.fold.types import is_wide

_INT32 = ir.DataType.INT32


def write(lowering: Lowering, build: Builder) -> Sequence[ir.Value]:
    """Write ``lowering`` down; see ``target.Write``."""
    match lowering:
        case Linear():
            return [products.with_quantized_kernels(lowering, build)]
        case AveragePool():
            return [averages.average_pool(lowering, build, quantized_kernels=True)]
        case _:
            return write_integer(lowering, build)


def write_integer(lowering: Lowering, build: Builder) -> Sequence[ir.Value]:
    """Write anything but a Linear down, without a float constant."""
    match lowering:
        case Requantize() if lowering.operand.type.dtype == _INT32:
            return [_rounded_accumulator(lowering, build)]
        case Requantize():
            codes, output = build.codes_of(lowering.reads[0]), lowering.node.outputs[0]
            return [_requantized(codes, lowering.operand.type, lowering.type, output, build)]
        case Function():
            return [_function(lowering, build)]
        case Curve():
            return [write_curve(lowering, build)]
        case Slopes():
            return [write_slopes(lowering, build)]
        case Sum():
            return [_sum(lowering, build)]
        case Product():
            return [_product(lowering, build)]
        case Concat() | Extremum() | Scatter() | Select():
            return [_joined(lowering, build)]
        case Reduction():
            return [averages.reduction(lowering, build)]
        case RunningSum():
            return [averages.running_sum(lowering, build)]
        case AveragePool():
            return [averages.average_pool(lowering, build, quantized_kernels=False)]
        case Softmax():
            return [averages.softmax(lowering, build)]
        case Interpolation():
            return [averages.interpolation(lowering, build)]
        case Clamp():
            return [write_clamp(lowering, build)]
        case Lookup():
            return [write_lookup(lowering, build)]
        case Move():
            return write_move(lowering, build)
        case _:
            raise TypeError(f"no lowering of {type(lowering).__name__}")


def decline(lowering: Lowering) -> Refusal | None:
    """What needs sizes that are not known."""
    match lowering:
        case Reduction() | AveragePool():
            return decline_wide(lowering) or averages.decline(lowering)
        case _:
            return decline_wide(lowering)


def shift(
    codes: ir.Value, old: AffineType, new: AffineType, like: ir.Value, build: Builder
) -> ir.Value:
    """The shift by 128 between int8 and uint8, in int32."""
    step = int(new.zero_point) - int(old.zero_point)
    wide = build.insert("Cast", [codes], like, _INT32, attributes={"to": int(_INT32)})
    moved = build.constant(np.asarray(step, np.int32), "recoding_shift")
    added = build.insert("Add", [wide, moved], like, _INT32)
    return build.insert("Cast", [added], like, new.dtype, attributes={"to": int(new.dtype)})


TARGET = Target("standard", True, write, decline, shift, accumulates=True, wide=True)


def requantization_table(old: AffineType, new: AffineType) -> Array:
    """Codes of ``new`` for all codes of ``old``, [256]."""
    low, high = old.limits
    return new.quantize(old.dequantize(np.arange(low, high + 1)))


def _requantized(
    codes: ir.Value, old: AffineType, new: AffineType, like: ir.Value, build: Builder
) -> ir.Value:
    """Codes of another type: by a table, where it is not one of 65,536 entries."""
    if not is_wide(old):
        return look_up(codes, requantization_table(old, new), new, like, build)
    factor = np.asarray(float(old.scale) / float(new.scale))
    term = Term(codes, factor, int(old.zero_point), old.reach)
    return rescale([term], new, like, build, shape=codes.shape)


def _rounded_accumulator(lowering: Requantize, build: Builder) -> ir.Value:
    """Codes of an int32 accumulator, whose scale may differ from channel to channel."""
    output = lowering.node.outputs[0]
    term = _term(lowering.operand, 1.0, lowering.type, output, build)
    constant = None if lowering.residual is None else lowering.residual / float(lowering.type.scale)
    return rescale([term], lowering.type, output, build, constant=constant)


def _function(function: Function, build: Builder) -> ir.Value:
    output = function.node.outputs[0]
    codes = build.operand(function.operand, output.name or "argument")
    lowest = function.operand.type.limits[0]
    return look_up(
        codes, function.table, function.type, output, build, lowest=lowest, axis=function.axis
    )


def _sum(lowering: Sum, build: Builder) -> ir.Value:
    output, affine = lowering.node.outputs[0], lowering.type
    terms: list[Term] = []
    constant = np.zeros(()) if lowering.constant is None else lowering.constant
    for operand, coefficient in zip(lowering.operands, lowering.coefficients, strict=True):
        if operand.codes is None:
            terms.append(_term(operand, coefficient, affine, output, build))
        else:
            constant = constant + coefficient * operand.type.dequantize(operand.codes)
    return rescale(terms, affine, output, build, constant=constant / float(affine.scale))


def _term(
    operand: Operand, coefficient: float, affine: AffineType, like: ir.Value, build: Builder
) -> Term:
    codes, unit = build.operand(operand, f"{like.name}_term"), operand.type
    factor: Array = np.asarray(coefficient * unit.scale.astype(np.float64) / float(affine.scale))
    if unit.axis is not None:
        behind = len(codes.shape or like.shape or ()) - unit.axis - 1
        factor = factor.reshape([-1] + [1] * behind)
    if unit.dtype == _INT32:
        return Term(codes, factor, 0, np.iinfo(np.int32).max)
    return Term(codes, factor, int(unit.zero_point), unit.reach)


def _product(lowering: Product, build: Builder) -> ir.Value:
    output, affine = lowering.node.outputs[0], lowering.type
    first, second = lowering.operands
    factors = [
        centred(build.operand(each, f"{output.name}_factor"), each.type, output, build)
        for each in lowering.operands
    ]
    bound = first.type.reach * second.type.reach
    dtype = _INT32 if bound <= np.iinfo(np.int32).max else ir.DataType.INT64
    wide = [IntegerOps(build, output, each.shape).cast(each, dtype) for each in factors]
    product = build.insert("Mul", wide, output, dtype)
    scale = float(first.type.scale) * float(second.type.scale) / float(affine.scale)
    return rescale([Term(product, np.asarray(scale), 0, bound)], affine, output, build)


def _joined(lowering: Joined, build: Builder) -> ir.Value:
    node, output, affine = lowering.node, lowering.node.outputs[0], lowering.type
    codes: list[ir.Value] = []
    for operand in lowering.operands:
        value = build.operand(operand, f"{output.name}_part")
        if operand.type is not affine:
            value = _requantized(value, operand.type, affine, output, build)
        codes.append(value)
    if isinstance(lowering, Select):
        return _where(node.inputs[0], codes, output, affine, build)
    if isinstance(lowering, Scatter):
        return write_scatter(lowering, codes, build)
    if isinstance(lowering, Concat):
        attributes = node.attributes
        return build.insert("Concat", codes, output, affine.dtype, attributes=attributes)
    return _extremum(node.op_type, codes, output, affine, build)


def _where(
    condition: ir.Value | None,
    codes: Sequence[ir.Value],
    output: ir.Value,
    affine: AffineType,
    build: Builder,
) -> ir.Value:
    """Where on codes; on those of 16 bits in int32, for which ONNX Runtime has a kernel."""
    assert condition is not None
    if not is_wide(affine):
        return build.insert("Where", [condition, *codes], output, affine.dtype)
    wide = [IntegerOps(build, output, each.shape).cast(each, _INT32) for each in codes]
    chosen = build.insert("Where", [condition, *wide], output, _INT32)
    return IntegerOps(build, output, output.shape).cast(chosen, affine.dtype)


def _extremum(
    op_type: str, codes: Sequence[ir.Value], output: ir.Value, affine: AffineType, build: Builder
) -> ir.Value:
    """Max or Min in int32: not every runtime has them for 8 bits."""
    to_int32, back = {"to": int(_INT32)}, {"to": int(affine.dtype)}
    wide = [
        build.insert("Cast", [each], output, _INT32, attributes=to_int32, shape=each.shape)
        for each in codes
    ]
    chosen = build.insert(op_type, wide, output, _INT32)
    return build.insert("Cast", [chosen], output, affine.dtype, attributes=back)
