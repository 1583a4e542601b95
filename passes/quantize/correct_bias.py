"""Pass ``correct-bias``: takes the mean error out of quantized linear operators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear_fold import replace_constant
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.linear_outputs import Dequantized, LinearOutput
from onnxfold.passes.quantize.output_errors import OutputErrors
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import use_count

_LARGEST_CODE = 2.0**30
"""Half of int32, as in ``insert-qdq``: the other half is for the products."""


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to the bias of each linear operator what its output is off by on average.

    Rounding weights and clipping activations shift the mean of an output channel; the bias takes
    that out at no cost at run time (Nagel et al., "Data-Free Quantization through Weight
    Equalization and Bias Correction", 2019, section 4.2 and appendix D). A bias in int32 codes
    gets new codes; where there is none, one is added: in codes where both operands have scales.

    Attributes:
        errors: Mean errors, from ``onnxfold.runtime.calibrate.layer_errors``, measured on this
            very graph.
    """

    errors: OutputErrors

    name: ClassVar[str] = "correct-bias"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Correct the linear operators of the main graph that the errors name.

        Raises:
            UsageError: The errors are those of another model.
        """
        nodes = {node_name(node): node for node in model.graph}
        for name, errors in self.errors.items():
            if name not in nodes:
                hint = did_you_mean(name, nodes)
                raise UsageError(f"correct-bias: the model has no node '{name}'{hint}")
            output = LinearOutput.match(nodes[name])
            if output is None or output.channels != len(errors):
                raise UsageError(f"correct-bias: the errors of node '{name}' are another model's")
            shift_output(output, np.array(errors), rewriter)


def shift_output(output: LinearOutput, shift: Array, rewriter: Rewriter) -> None:
    """Add ``shift`` [channels] to the bias of a linear operator, or remark why it cannot be."""
    node = output.node
    if not shift.any():
        return
    if node.op_type == "MatMul":
        _shift_sum(output, shift, rewriter)
        return
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    beta = node.attributes.get_float("beta", 1.0) if bias is not None else 1.0
    shift = shift / beta if beta else shift
    codes = None if bias is None else Dequantized.match(bias)
    array = constant_array(bias if codes is None else codes.codes)
    if bias is not None and (array is None or math.prod(array.shape[:-1]) != 1 or not beta):
        rewriter.remark(node, "its bias is not one constant a channel")
    elif codes is not None and array is not None:
        _recode(output, codes, array, shift, rewriter)
    elif array is not None:
        total = (array.astype(np.float64).reshape(-1) + shift).astype(array.dtype)
        with rewriter.step("shift-bias", node):
            replace_constant(rewriter, node, 2, total, "bias")
    else:
        _add_bias(output, shift, rewriter)


def _recode(
    output: LinearOutput, old: Dequantized, codes: Array, shift: Array, rewriter: Rewriter
) -> None:
    """Shift a bias in codes, for this operator only: others may share the codes."""
    steps = np.rint(shift / old.scale.astype(np.float64).reshape(-1))
    total = codes.astype(np.float64).reshape(-1) + steps
    if codes.dtype != np.int32 or np.abs(total).max() > _LARGEST_CODE:
        rewriter.remark(output.node, "the corrected bias would not fit its codes")
        return
    if not np.any(steps):
        return
    node = output.node
    with rewriter.step("shift-bias-codes", node):
        stored = rewriter.constant(node, total.astype(np.int32), name=f"{old.codes.name}_corrected")
        real = rewriter.insert(
            node,
            "DequantizeLinear",
            [stored, *old.node.inputs[1:]],
            name=f"{node.outputs[0].name}_bias_dequantized",
            attributes=dict(old.node.attributes),
            dtype=ir.DataType.FLOAT,
            shape=(output.channels,),
        )
        rewriter.set_input(node, 2, real)
        if not use_count(old.node.outputs[0]):
            rewriter.erase(old.node)


def _add_bias(output: LinearOutput, shift: Array, rewriter: Rewriter) -> None:
    """Give an operator a bias: codes of the scale that its products have, where they have one."""
    node = output.node
    scale = _product_scale(output)
    name = f"{node.outputs[0].name}_bias"
    if scale is None:
        with rewriter.step("add-bias", node):
            replace_constant(rewriter, node, 2, shift.astype(np.float32), "bias")
            rewriter.set_attribute(node, "beta", None)
        return
    codes = np.rint(shift / scale.astype(np.float64))
    if np.abs(codes).max() > _LARGEST_CODE:
        rewriter.remark(node, "a bias would not fit the codes of its scale")
        return
    with rewriter.step("add-bias-codes", node):
        parameters = [
            rewriter.constant(node, array, name=f"{name}_{role}")
            for array, role in (
                (codes.astype(np.int32), "quantized"),
                (scale, "scale"),
                (np.zeros(scale.shape, np.int32), "zero_point"),
            )
        ]
        real = rewriter.insert(
            node,
            "DequantizeLinear",
            parameters,
            name=f"{name}_dequantized",
            attributes={"axis": 0} if scale.ndim else {},
            dtype=ir.DataType.FLOAT,
            shape=(output.channels,),
        )
        rewriter.set_input(node, 2, real)
        rewriter.set_attribute(node, "beta", None)


def _product_scale(output: LinearOutput) -> Array | None:
    """The float32 product of the operands' scales, as runtimes compute it; None without one."""
    node = output.node
    data, weights = Dequantized.match(node.inputs[0]), Dequantized.match(node.inputs[1])
    if data is None or weights is None or data.scale.size != 1 or data.scale.dtype != np.float32:
        return None
    if weights.scale.size not in (1, output.channels) or weights.scale.ndim > 1:
        return None
    if node.attributes.get_float("alpha", 1.0) != 1.0:
        return None
    scale: Array = np.asarray(data.scale.reshape(()) * weights.scale, np.float32)
    return scale.reshape(()) if scale.size == 1 and output.channels != 1 else scale


def _shift_sum(output: LinearOutput, shift: Array, rewriter: Rewriter) -> None:
    """Shift the Add behind a MatMul, or add one."""
    node, add, value = output.node, output.add, output.node.outputs[0]
    dtype = np.float32 if value.dtype is None else value.dtype.numpy()
    if add is not None:
        index = 1 if add.inputs[0] is value else 0
        bias = constant_array(add.inputs[index])
        assert bias is not None
        total = (bias.astype(np.float64).reshape(-1) + shift).astype(bias.dtype)
        with rewriter.step("shift-sum", node):
            replace_constant(rewriter, add, index, total, "bias")
        return
    with rewriter.step("add-sum", node):
        constant = rewriter.constant(node, shift.astype(dtype), name=f"{value.name}_bias")
        shifted = rewriter.insert(
            node,
            "Add",
            [value, constant],
            name=f"{value.name}_corrected",
            dtype=value.dtype,
            shape=value.shape,
            after=True,
        )
        added = shifted.producer()
        assert added is not None
        rewriter.replace_value(value, shifted, keep=(added,))
