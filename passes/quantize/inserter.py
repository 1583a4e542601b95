"""Carries out a placement: Q/DQ pairs on activations, integer codes for constants."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.affine import AffineType, affine_from_range, symmetric_from_range
from onnxfold.passes.constants import Array, constant_array, constant_tensor
from onnxfold.passes.quantize.input_moments import InputMoments
from onnxfold.passes.quantize.placement import Group, Placement
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.quantize.roles import Role, constant_operand_indices, operand_indices
from onnxfold.passes.quantize.schemes import Scheme
from onnxfold.passes.quantize.unit_types import Coded, written_types
from onnxfold.passes.quantize.units import Unit
from onnxfold.passes.quantize.weights import QuantizedWeights, quantize_weights
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.unused import drop_unused
from onnxfold.passes.walk import nested_graphs

CONTRIB = "com.microsoft"
_OF_8_BITS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)


@dataclass(frozen=True)
class QdqSettings:
    """How codes are chosen, beyond the schemes of the operators.

    Attributes:
        ranges: What values the activations take.
        symmetric: Whether zero points of activations are in the middle of the codes.
        contrib: Whether Q/DQ of 4 and 16 bits are those of com.microsoft.
        moments: What weights are multiplied by, for ``hessian``.
    """

    ranges: Ranges
    symmetric: bool = False
    contrib: bool = False
    moments: InputMoments | None = None


class QdqInserter:
    """Carries out a placement on the rewriter's model."""

    def __init__(self, settings: QdqSettings, placement: Placement, rewriter: Rewriter) -> None:
        self._settings = settings
        self._placement = placement
        self._rewriter = rewriter
        graphs = (rewriter.model.graph, *nested_graphs(rewriter.model.graph))
        self._first_nodes = {graph: next(iter(graph), None) for graph in graphs}
        self._types: dict[Coded, AffineType] = {}
        self._readers: dict[Coded, list[tuple[ir.Node, int]]] = {}
        self._parameters: dict[Hashable, tuple[ir.Value, ir.Value]] = {}
        self._constants: dict[Hashable, ir.Value] = {}
        self._tensors: list[ir.TensorProtocol | None] = []  # keeps the ids in the keys unique
        self._produced = {value for unit in placement.units for value in unit.outputs}

    def insert(self) -> None:
        """Quantize activations, then constants."""
        needed: dict[ir.Value, list[ir.DataType]] = {}
        for group in self._placement.groups:
            kind = self._type_of(group)
            for value in group.values:
                self._types[value, group.dtype] = kind
                needed.setdefault(value, []).append(group.dtype)
        for unit in self._placement.units:
            for index in operand_indices(unit.node):
                value = unit.node.inputs[index]
                if value is not None:
                    coded = value, unit.scheme.activation_type
                    self._readers.setdefault(coded, []).append((unit.node, index))
        data_types = [
            self._types[unit.operands[0], unit.scheme.activation_type]
            for unit in self._placement.units
        ]
        written = written_types(self._placement.units)
        for value, dtypes in needed.items():
            self._quantize_activation(value, dtypes, written.get(value))
        for unit, data_type in zip(self._placement.units, data_types, strict=True):
            self._quantize_constants(unit, data_type)

    def _type_of(self, group: Group) -> AffineType:
        ranges = [self._settings.ranges[value.name or ""] for value in group.observed]
        arrays = [constant_array(value) for value in group.constants]
        ranges += [(float(a.min()), float(a.max())) for a in arrays if a is not None and a.size]
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        return self._affine(low, high, group.dtype)

    def _affine(self, low: float, high: float, dtype: ir.DataType) -> AffineType:
        if self._settings.symmetric:
            return symmetric_from_range(low, high, dtype)
        return affine_from_range(low, high, dtype)

    def _quantize_activation(
        self, value: ir.Value, dtypes: Sequence[ir.DataType], written: ir.DataType | None
    ) -> None:
        """Put a pair on ``value``, or one for each type that it is needed in."""
        if value not in self._produced or (written is None and len(dtypes) > 1):
            for dtype in dtypes:
                self._quantize_for_readers(value, value, dtype, "quantize-activation")
            return
        first = dtypes[0] if written is None else written
        producer = value.producer()
        assert producer is not None
        rewriter = self._rewriter
        with rewriter.step("quantize-activation", producer):
            codes, real = self._pair(value, value, first)
            quantize = codes.producer()
            assert quantize is not None
            for node, index in tuple(value.uses()):
                if node.op_type in ("Shape", "Size") and not node.domain:
                    # Codes have the same shape; nothing need be dequantized to know it.
                    rewriter.set_input(node, index, codes)
            rewriter.replace_value(value, real, keep=(quantize,))
        for dtype in dtypes:
            if dtype != first:
                self._quantize_for_readers(value, real, dtype, "requantize-activation")

    def _quantize_for_readers(
        self, value: ir.Value, source: ir.Value, dtype: ir.DataType, rule: str
    ) -> None:
        """Let those who need ``value`` in one type read a pair behind ``source``."""
        readers = self._readers.get((value, dtype), [])
        with self._rewriter.step(rule, value.producer() or readers[0][0]):
            _, real = self._pair(value, source, dtype)
            for node, index in readers:
                self._rewriter.set_input(node, index, real)

    def _pair(
        self, value: ir.Value, source: ir.Value, dtype: ir.DataType
    ) -> tuple[ir.Value, ir.Value]:
        """Codes of ``value``, quantized from ``source``, and what they stand for."""
        rewriter, producer = self._rewriter, source.producer()
        assert source.graph is not None
        anchor = producer or self._first_nodes[source.graph]
        assert anchor is not None
        after = producer is not None
        parameters = self._scale_and_zero_point(self._types[value, dtype], value.name or "")
        codes = rewriter.insert(
            anchor,
            "QuantizeLinear",
            [source, *parameters],
            name=f"{value.name}_quantized",
            domain=self._domain(dtype),
            dtype=dtype,
            shape=value.shape,
            after=after,
        )
        quantize = codes.producer()
        assert quantize is not None
        real = rewriter.insert(
            quantize if after else anchor,
            "DequantizeLinear",
            [codes, *parameters],
            name=f"{value.name}_dequantized",
            domain=self._domain(dtype),
            dtype=ir.DataType.FLOAT,
            shape=value.shape,
            after=after,
        )
        return codes, real

    def _domain(self, dtype: ir.DataType) -> str:
        return CONTRIB if self._settings.contrib and dtype not in _OF_8_BITS else ""

    def _quantize_constants(self, unit: Unit, data_type: AffineType) -> None:
        node, scheme = unit.node, unit.scheme
        for index in constant_operand_indices(node):
            array = constant_array(node.inputs[index])
            if array is not None:
                tied = unit.role is Role.TIED
                kind = data_type if tied else self._type_of_data(array, scheme)
                self._replace_constant(node, index, array, kind)
        if unit.role is not Role.LINEAR:
            return
        left = constant_array(node.inputs[0])
        if left is not None:
            self._replace_constant(node, 0, left, self._type_of_data(left, scheme))
            return
        moments = self._settings.moments
        quantized = quantize_weights(
            node,
            data_type,
            per_channel=scheme.per_channel,
            ranges=scheme.weight_ranges,
            dtype=scheme.weight_type,
            block=scheme.block,
            importance=None if moments is None else moments.importance(node),
        )
        if quantized is not None:
            self._replace_weights(node, quantized)

    def _type_of_data(self, array: Array, scheme: Scheme) -> AffineType:
        return self._affine(float(array.min()), float(array.max()), scheme.activation_type)

    def _replace_weights(self, node: ir.Node, quantized: QuantizedWeights) -> None:
        self._replace_codes(node, quantized.index, quantized.weights, quantized.weight_type)
        if quantized.bias is not None and quantized.bias_type is not None:
            self._replace_codes(node, 2, quantized.bias, quantized.bias_type)

    def _replace_constant(self, node: ir.Node, index: int, array: Array, kind: AffineType) -> None:
        self._replace_codes(node, index, kind.quantize(array), kind)

    def _replace_codes(self, node: ir.Node, index: int, codes: Array, kind: AffineType) -> None:
        """Let input ``index`` of ``node`` read a DequantizeLinear of ``codes``."""
        source = node.inputs[index]
        assert source is not None
        tensor = constant_tensor(source)
        self._tensors.append(tensor)
        # One copy for each need: readers that agree about the codes' meaning share it. A body has
        # its own, because runtimes look for the pair around an operator in the operator's graph.
        meaning = (kind.dtype, kind.axis, kind.block, kind.scale.tobytes())
        key = (id(tensor), node.graph, codes.shape, *meaning, kind.zero_point.tobytes())
        with self._rewriter.step("quantize-constant", node):
            real = self._constants.get(key)
            if real is None:
                real = self._dequantized(node, source.name or "", codes, kind)
                self._constants[key] = real
            self._rewriter.set_input(node, index, real)
            drop_unused(source, self._rewriter)

    def _dequantized(self, node: ir.Node, name: str, codes: Array, kind: AffineType) -> ir.Value:
        rewriter = self._rewriter
        stored = rewriter.constant(node, codes, name=f"{name}_quantized")
        parameters = self._scale_and_zero_point(kind, name)
        attributes = {} if kind.axis is None else {"axis": kind.axis}
        if kind.block:
            attributes["block_size"] = kind.block
        return rewriter.insert(
            node,
            "DequantizeLinear",
            [stored, *parameters],
            name=f"{name}_dequantized",
            attributes=attributes,
            domain=self._domain(kind.dtype),
            dtype=ir.DataType.FLOAT,
            shape=codes.shape,
        )

    def _scale_and_zero_point(self, kind: AffineType, name: str) -> tuple[ir.Value, ir.Value]:
        """Initializers for ``kind``; equal types share them."""
        key = (kind.dtype, kind.scale.shape, kind.scale.tobytes(), kind.zero_point.tobytes())
        if key not in self._parameters:
            graph = self._rewriter.model.graph
            self._parameters[key] = (
                self._rewriter.add_initializer(graph, kind.scale, name=f"{name}_scale"),
                self._rewriter.add_initializer(graph, kind.zero_point, name=f"{name}_zero_point"),
            )
        return self._parameters[key]
