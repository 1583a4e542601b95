"""Keeps ONNX Runtime's optimizer from misreading what stays float.

Its Q/DQ fusion takes a float op between DequantizeLinear and QuantizeLinear for an integer one
without looking at everything: scales along the wrong axis of the weights, one scale a channel on
activations, float weights (which it quantizes itself, per tensor), biases of any scale or size.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.plan import OLDEST_OPSET, Plan
from onnxfold.passes.fold.types import is_dequantize, is_quantize
from onnxfold.passes.rewriter import Rewriter

_LINEAR = frozenset({"Conv", "Gemm", "MatMul"})
_FUSED = _LINEAR | frozenset(
    {
        "Add",
        "AveragePool",
        "Concat",
        "GlobalAveragePool",
        "LeakyRelu",
        "MaxPool",
        "Mul",
        "Sigmoid",
        "Softmax",
        "Where",
    }
)
_MERGED_OPS = 4  # bias, scale, activation: as far as ONNX Runtime looks


def guard_float_ops(plan: Plan, rewriter: Rewriter) -> set[ir.Node]:
    """Dequantize the operands of misread ops in a form that ONNX Runtime does not fuse.

    Returns:
        The ops that were guarded.
    """
    guarded: set[ir.Node] = set()
    for node in [each for graph in plan.graphs for each in graph]:
        if rewriter.opset(node) < OLDEST_OPSET or node.domain or not _is_misread(node, plan):
            continue
        for index, value in enumerate(node.inputs):
            producer = _computed_dequantize(value)
            affine = None if producer is None else plan.types.parameters(producer)
            shape = None if affine is None else _parameter_shape(affine, producer)
            if producer is None or affine is None or shape is None:
                continue
            with rewriter.step("guard-float", node):
                real = _dequantized(node, producer, affine, shape, rewriter)
                rewriter.set_input(node, index, real)
                guarded.add(node)
            if not any(each.uses() or each.is_graph_output() for each in producer.outputs):
                with rewriter.step("remove-replaced", producer):
                    rewriter.erase(producer)
    return guarded


def feeds_quantize(node: ir.Node) -> bool:
    """Whether the output is quantized, at once or behind ops that may be merged into ``node``."""
    for _ in range(_MERGED_OPS):
        readers = [use.node for use in node.outputs[0].uses()]
        if any(is_quantize(reader) for reader in readers):
            return True
        if len(readers) != 1:
            return False
        node = readers[0]
    return False


def reads_dequantized(node: ir.Node) -> bool:
    """Whether the data of ``node`` comes from a DequantizeLinear of computed codes."""
    return _computed_dequantize(node.inputs[0]) is not None


def _is_misread(node: ir.Node, plan: Plan) -> bool:
    if not any(_computed_dequantize(value) for value in node.inputs):
        return False
    if node.op_type == "ConvTranspose":
        return constant_array(node.inputs[1]) is not None and feeds_quantize(node)
    refused = node.op_type in _LINEAR and node in plan.refusals
    if refused and (feeds_quantize(node) or _has_scales_on_another_axis(node, plan)):
        return True
    return node.op_type in _FUSED and _has_scales_per_channel(node)


def _has_scales_on_another_axis(node: ir.Node, plan: Plan) -> bool:
    known = plan.types.get(node.inputs[1])
    if known is None or known.codes is None or known.type.axis is None:
        return False
    by_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    return known.type.axis != (0 if by_rows else known.codes.ndim - 1)


def _has_scales_per_channel(node: ir.Node) -> bool:
    """Whether an activation that ``node`` reads or writes has one scale a channel."""
    pairs = [each for each in map(_computed_dequantize, node.inputs) if each is not None]
    pairs += [use.node for each in node.outputs for use in each.uses() if is_quantize(use.node)]
    return any(
        (scale := constant_array(each.inputs[1])) is None or scale.size != 1 for each in pairs
    )


def _computed_dequantize(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of computed codes that ``value`` comes from."""
    producer = None if value is None else value.producer()
    if producer is None or not is_dequantize(producer):
        return None
    return None if constant_array(producer.inputs[0]) is not None else producer


def _dequantized(
    node: ir.Node,
    dequantize: ir.Node,
    affine: AffineType,
    shape: tuple[int, ...],
    rewriter: Rewriter,
) -> ir.Value:
    """The same numbers as Cast, Sub, Mul; the parameters are of ``shape``."""
    codes, output = dequantize.inputs[0], dequantize.outputs[0]
    assert codes is not None
    name = f"{output.name}_guarded"
    to_real = {"to": int(ir.DataType.FLOAT)}
    real = rewriter.insert(
        node,
        "Cast",
        [codes],
        name=name,
        attributes=to_real,
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    for op_type, parameter in (("Sub", affine.zero_point), ("Mul", affine.scale)):
        if op_type == "Sub" and affine.symmetric:
            continue
        number = parameter.astype(np.float32).reshape(shape)
        constant = rewriter.constant(node, number, name=f"{name}_{op_type.lower()}")
        real = rewriter.insert(
            node,
            op_type,
            [real, constant],
            name=name,
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
    return real


def _parameter_shape(affine: AffineType, dequantize: ir.Node | None) -> tuple[int, ...] | None:
    """The shape in which scale and zero point broadcast; None where the rank is not known."""
    if affine.axis is None:
        return ()
    values = () if dequantize is None else (dequantize.inputs[0], dequantize.outputs[0])
    shapes = [each.shape for each in values if each is not None and each.shape is not None]
    if not shapes:
        return None
    return tuple(-1 if index == affine.axis else 1 for index in range(len(shapes[0])))
