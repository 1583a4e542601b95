"""Pass ``integer-io``: lets a quantized model read and give codes instead of real numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import affine_from_range
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.io_types import KEY, IoType, io_types_text, read_io_types
from onnxfold.passes.op_kinds import is_dequantize, is_quantize
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.unused import drop_unused
from onnxfold.passes.walk import use_count

_TYPES = {"u8": ir.DataType.UINT8, "s8": ir.DataType.INT8}


@dataclass(frozen=True)
class IntegerIo(Pass):
    """Remove Q/DQ at the edges of a model: float32 inputs and outputs become integers.

    Names, order and shapes stay. The scale and zero point of each, ``real = scale * (q - zero
    point)``, are written to the model's metadata under ``onnxfold.io``, as JSON. An input that a
    QuantizeLinear reads takes its type; one without gets a type of its range, and likewise the
    outputs. What is left stays float32, with a remark. Run it behind ``insert-qdq`` and before
    ``fold-qdq``.

    Attributes:
        ranges: What values inputs and outputs take that are not quantized yet.
        type: The codes of those.
        skip: Names of inputs and outputs that stay float32.
    """

    ranges: Ranges | None = None
    type: Literal["u8", "s8"] = "u8"
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "integer-io"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    @property
    def changes_interface(self) -> bool:
        """It does."""
        return True

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Convert the inputs and outputs of the main graph.

        Raises:
            UsageError: ``skip`` names no input and no output.
        """
        graph = model.graph
        known = {value.name or "" for value in (*graph.inputs, *graph.outputs)}
        for name in self.skip:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UsageError(f"integer-io: no input and no output '{name}'{hint}")
        found = read_io_types(model)
        for value in list(graph.inputs):
            if self._is_open(value) and not value.is_initializer() and use_count(value):
                kind = _input_type(value) or self._type_of(value)
                if _convert_input(value, kind, rewriter) and kind is not None:
                    found[value.name or ""] = kind
        for value in dict.fromkeys(graph.outputs):
            if self._is_open(value) and value.producer() is not None:
                name = value.name or ""
                kind = _output_type(value) or self._type_of(value)
                if _convert_output(value, kind, rewriter) and kind is not None:
                    found[name] = kind
        if found != read_io_types(model):
            with rewriter.step("record-types"):
                rewriter.set_metadata(KEY, io_types_text(found))

    def _is_open(self, value: ir.Value) -> bool:
        return value.dtype == ir.DataType.FLOAT and value.name not in self.skip

    def _type_of(self, value: ir.Value) -> IoType | None:
        ranges: Mapping[str, tuple[float, float]] = self.ranges if self.ranges is not None else {}
        name = value.name or ""
        if name not in ranges:
            return None
        affine = affine_from_range(*ranges[name], _TYPES[self.type])
        return IoType(affine.dtype, float(affine.scale), int(affine.zero_point))


def _parameters(node: ir.Node) -> IoType | None:
    """What codes of a Q or DQ stand for; None where there is more than one scale."""
    scale = constant_array(node.inputs[1])
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant_array(zero_value)
    codes = node.outputs[0] if is_quantize(node) else node.inputs[0]
    if scale is None or scale.size != 1 or (zero_value is not None and zero is None):
        return None
    dtype = codes.dtype if codes is not None else None
    if zero is not None:
        dtype = ir.DataType.from_numpy(zero.dtype)
    if dtype is None:
        return None
    return IoType(dtype, float(scale.reshape(())), 0 if zero is None else int(zero.reshape(())))


def _input_type(value: ir.Value) -> IoType | None:
    """The one type that all QuantizeLinear behind an input agree on."""
    found = {_parameters(use.node) for use in value.uses() if is_quantize(use.node)}
    return found.pop() if len(found) == 1 else None


def _output_type(value: ir.Value) -> IoType | None:
    producer = value.producer()
    return _parameters(producer) if producer is not None and is_dequantize(producer) else None


def _convert_input(value: ir.Value, kind: IoType | None, rewriter: Rewriter) -> bool:
    readers = [use.node for use in value.uses()]
    first = next(iter(rewriter.model.graph))
    if kind is None:
        rewriter.remark(readers[0], f"input '{value.name}' stays float32: it is not quantized")
        return False
    with rewriter.step("convert-input", readers[0]) as step:
        rewriter.set_type(value, kind.dtype)
        others = [use for use in value.uses() if _quantizes(use.node, kind) is None]
        for node in dict.fromkeys(readers):
            if _quantizes(node, kind) is not None:
                sources = node.inputs[1:]
                rewriter.replace_node(node, [value])
                for source in sources:
                    drop_unused(source, rewriter)
        if others or value.is_graph_output():
            real = rewriter.insert(
                first if first.graph is not None else next(iter(rewriter.model.graph)),
                "DequantizeLinear",
                [value, *_constants(kind, value, rewriter)],
                name=f"{value.name}_dequantized",
                dtype=ir.DataType.FLOAT,
                shape=value.shape,
            )
            for node, index in others:
                rewriter.set_input(node, index, real)
    return step.applied


def _quantizes(node: ir.Node, kind: IoType) -> ir.Value | None:
    """The codes a QuantizeLinear of that very type makes."""
    return node.outputs[0] if is_quantize(node) and _parameters(node) == kind else None


def _convert_output(value: ir.Value, kind: IoType | None, rewriter: Rewriter) -> bool:
    producer = value.producer()
    assert producer is not None
    if kind is None:
        reason = f"output '{value.name}' stays float32: it is computed as a real number"
        rewriter.remark(producer, reason, "give its range")
        return False
    readers = {use.node for use in value.uses()}
    with rewriter.step("convert-output", producer) as step:
        if is_dequantize(producer) and _parameters(producer) == kind:
            codes = producer.inputs[0]
            assert codes is not None
        else:
            codes = rewriter.insert(
                producer,
                "QuantizeLinear",
                [value, *_constants(kind, value, rewriter)],
                name=f"{value.name}_quantized",
                dtype=kind.dtype,
                shape=value.shape,
                after=True,
            )
            readers.add(codes.producer() or producer)
        name = value.name
        rewriter.replace_value(value, codes, keep=readers)
        for output in rewriter.model.graph.outputs:
            if output.name == name:
                rewriter.set_type(output, kind.dtype)
        if not use_count(value) and producer.outputs[0] is value and is_dequantize(producer):
            sources = producer.inputs[1:]
            rewriter.erase(producer)
            for source in sources:
                drop_unused(source, rewriter)
    return step.applied


def _constants(kind: IoType, value: ir.Value, rewriter: Rewriter) -> list[ir.Value]:
    graph = rewriter.model.graph
    scale: Array = np.asarray(kind.scale, np.float32)
    zero: Array = np.asarray(kind.zero_point, kind.dtype.numpy())
    return [
        rewriter.add_initializer(graph, scale, name=f"{value.name}_scale"),
        rewriter.add_initializer(graph, zero, name=f"{value.name}_zero_point"),
    ]
