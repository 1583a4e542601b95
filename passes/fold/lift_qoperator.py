"""The pass that lifts quantized operators back to real ones between Q and DQ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.fold import lift_qoperator_forms, lift_qoperator_linear
from onnxfold.passes.fold.lift_qoperator_forms import (
    EDGES,
    PER_CHANNEL_OPSET,
    Dequantized,
    LiftRule,
    NotLiftableError,
    RealForm,
)
from onnxfold.passes.fold.rules import RULES as FOLD_RULES
from onnxfold.passes.fold.types import DEQUANTIZE, QUANTIZE
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes

_RULES: dict[str, LiftRule] = {**lift_qoperator_forms.RULES, **lift_qoperator_linear.RULES}
_FIRST_OPSET = 10
"""The first with QuantizeLinear and DequantizeLinear."""
_FLOAT = ir.DataType.FLOAT
_Values: TypeAlias = dict[tuple[object, ...], ir.Value]


@dataclass(frozen=True)
class LiftQoperator(Pass):
    """Lift QLinearConv, QGemm and their like to DequantizeLinear, the real op, QuantizeLinear.

    So that ``fold-qdq`` can fold them again, for any target. Operators with parameters computed at
    run time stay, and so do those that the fold could not take back to integers.
    """

    name: ClassVar[str] = "lift-qoperator"
    contract: ClassVar[Contract] = Contract.INTEGER

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Look at every node once, in order."""
        writer = _Writer(rewriter)
        for node in list(all_nodes(model)):
            key = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            rule = _RULES.get(key) or EDGES.get(key)
            if rule is None or node.graph is None:
                continue
            try:
                form = rule(node, rewriter.opset(node))
                if form is not None:
                    _check_form(form, rewriter.opset(node), is_edge=key in EDGES)
            except NotLiftableError as error:
                rewriter.remark(node, f"it is not lifted: {error}", error.advice)
                continue
            if form is not None:
                writer.write(form)
            elif key in EDGES:
                _describe(node, rewriter)


def _check_form(form: RealForm, opset: int, *, is_edge: bool) -> None:
    """Refuse what this opset cannot say, or the fold cannot take back."""
    types = [each.type for each in form.inputs if isinstance(each, Dequantized)]
    needed = _FIRST_OPSET if all(each.per_tensor for each in types) else PER_CHANNEL_OPSET
    if opset < needed:
        raise NotLiftableError(f"that needs opset {needed}", "upgrade the opset")
    if not is_edge and form.op_type not in FOLD_RULES:
        raise NotLiftableError(f"the fold has no integer rule for {form.op_type}")


def _describe(node: ir.Node, rewriter: Rewriter) -> None:
    """Write down the shape after a Q or DQ of com.microsoft: shape inference does not know it."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is not None:
        return
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    codes = None if zero_point is None else zero_point.dtype
    with rewriter.step("set-type", node):
        rewriter.set_type(output, _FLOAT if node.op_type == DEQUANTIZE else codes, source.shape)


@dataclass
class _Writer:
    """Writes real forms down; what several of them read is written once."""

    rewriter: Rewriter
    reals: _Values = field(default_factory=_Values)
    constants: _Values = field(default_factory=_Values)

    def write(self, form: RealForm) -> None:
        """Put ``form`` in the place of the nodes it covers."""
        node, rewriter, output = form.node, self.rewriter, form.node.outputs[0]
        covered = form.covered or (node,)
        sources = [each for each in covered if each is not node]
        with rewriter.step(f"lift-{form.op_type.lower()}", node, sources=sources):
            inputs = [self._real(each, node) for each in form.inputs]
            dtype = output.dtype if form.type is None else _FLOAT
            real = self._insert(form, form.op_type, inputs, dtype, form.attributes)
            if form.addend is not None:
                real = self._insert(form, "Add", [real, self._real(form.addend, node)], dtype)
            if form.type is not None:
                parameters = self._parameters(form.type, node)
                real = self._insert(form, QUANTIZE, [real, *parameters], form.type.dtype)
            is_output = output.is_graph_output()
            rewriter.replace_value(output, real)
            if not is_output:
                rewriter.swap_names(output, real)
            for each in reversed(covered):
                rewriter.erase(each)

    def _insert(
        self,
        form: RealForm,
        op_type: str,
        inputs: list[ir.Value | None],
        dtype: ir.DataType | None,
        attributes: dict[str, ir.Attr] | None = None,
    ) -> ir.Value:
        output = form.node.outputs[0]
        return self.rewriter.insert(
            form.node,
            op_type,
            inputs,
            name=f"{output.name}_{op_type.lower()}",
            attributes=attributes,
            dtype=dtype,
            shape=output.shape,
        )

    def _real(self, operand: Dequantized | ir.Value | None, anchor: ir.Node) -> ir.Value | None:
        return self._dequantize(operand, anchor) if isinstance(operand, Dequantized) else operand

    def _dequantize(self, operand: Dequantized, anchor: ir.Node) -> ir.Value:
        codes, affine = operand.codes, operand.type
        if not isinstance(codes, ir.Value):
            codes = self._constant(codes, "weights", anchor)
        key = (
            anchor.graph, codes, affine.axis, affine.scale.tobytes(), affine.zero_point.tobytes()
        )  # fmt: skip
        if key not in self.reals:
            is_int32 = affine.dtype == ir.DataType.INT32
            scale, zero_point = self._parameters(affine, anchor)
            self.reals[key] = self.rewriter.insert(
                anchor,
                DEQUANTIZE,
                [codes, scale] if is_int32 else [codes, scale, zero_point],
                name=f"{codes.name}_real",
                attributes=None if affine.axis is None else {"axis": affine.axis},
                dtype=_FLOAT,
                shape=codes.shape,
            )
        return self.reals[key]

    def _parameters(self, affine: AffineType, anchor: ir.Node) -> tuple[ir.Value, ir.Value]:
        scale = self._constant(affine.scale, "scale", anchor)
        zero_point = affine.zero_point.astype(affine.dtype.numpy())
        return scale, self._constant(zero_point, "zero_point", anchor)

    def _constant(self, array: Array, name: str, anchor: ir.Node) -> ir.Value:
        key = (anchor.graph, str(array.dtype), array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.rewriter.constant(anchor, array, name=name)
        return self.constants[key]
