"""Carrying out a plan: integer nodes beside the float ones, then the switch, then the clean-up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import (
    Alias,
    Curve,
    Dequantize,
    Function,
    Lowering,
    Quantize,
    Requantize,
    Slopes,
    Sum,
)
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.target import Target
from onnxfold.passes.fold.types import is_quantize
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_Graph = ir.Graph | ir.Function | None

RECODED_SUFFIX = "_u8"
"""Appended to the name of int8 codes, it names the same codes + 128 as uint8."""


class Lowerer:
    """Carries out one plan.

    Until ``connect`` nothing of the original graph is touched, so that any step may be refused
    and what remains still computes the original.
    """

    def __init__(self, plan: Plan, rewriter: Rewriter, target: Target) -> None:
        self._plan = plan
        self._rewriter = rewriter
        self._target = target
        self._build = Builder(rewriter, plan.types)
        self._replacements: list[tuple[ir.Value, ir.Value]] = []
        self._names: list[tuple[ir.Value, str, ir.Value]] = []
        # By graph too: a body does not see what its sibling computes.
        self._quantized: dict[tuple[_Graph, ir.Value, AffineType], ir.Value] = {}
        self._shifted: dict[tuple[_Graph, ir.Value], ir.Value] = {}
        self._named: set[ir.Value] = set()
        self._original = set(plan.order)
        self._unused = {value for value in self._initializers() if not use_count(value)}

    def run(self) -> None:
        """Write all lowerings down, let their readers use them, and remove what they replace."""
        for node in self._plan.order:
            lowering = self._plan.lowerings.get(node)
            if lowering is not None and lowering.node is node and self._is_needed(node):
                self._lower(lowering)
        for old, new in self._replacements:
            self._connect(old, new)
        for old, name, codes in self._names:
            self._rename(old, name, codes)
        if self._rewriter.modified:
            self._clean_up()
            self._settle_names()

    def _is_needed(self, node: ir.Node) -> bool:
        plan = self._plan
        return any(each in plan.needs_codes or each in plan.needs_plain for each in node.outputs)

    def _lower(self, lowering: Lowering) -> None:
        build, node = self._build, lowering.node
        if not all(build.available(value) for value in lowering.reads):
            return
        build.anchor = node
        sources = [each for each in lowering.covered if each is not node]
        with self._rewriter.step(lowering.name, node, sources=sources):
            for output, result in zip(node.outputs, self._results(lowering), strict=True):
                self._stand_for(output, result)
                if is_quantize(node) and isinstance(lowering, Curve | Function | Slopes | Sum):
                    self._names.append((output, output.name or "", result))

    def _stand_for(self, output: ir.Value, result: ir.Value) -> None:
        """Let ``result`` stand for ``output``: as its codes, or as it is where it has no type."""
        if self._plan.types.get(output) is None:
            real = result
        else:
            self._build.codes[output] = result
            real = self._plain(output, result)
        if real is not None and real is not output:
            self._replacements.append((output, real))

    def _results(self, lowering: Lowering) -> Sequence[ir.Value]:
        match lowering:
            case Quantize():
                return [self._quantize(lowering)]
            case Dequantize():
                return [self._dequantize(lowering)]
            case Alias():
                return [self._build.codes_of(lowering.reads[0])]
            case Requantize():
                return [self._requantize(lowering)]
            case _:
                return self._target.write(lowering, self._build)

    def _quantize(self, lowering: Quantize) -> ir.Value:
        output = lowering.node.outputs[0]
        if lowering.reads:
            codes = self._build.codes_of(lowering.reads[0])
            self._names.append((output, output.name or "", codes))
            return codes
        source = lowering.plain[0]
        key = (lowering.node.graph, source, lowering.internal)
        if key not in self._quantized:
            written = lowering.type is lowering.internal
            self._quantized[key] = (
                output if written else self._build.quantize(source, lowering.internal, output)
            )
            self._names.append((output, output.name or "", self._quantized[key]))
        return self._quantized[key]

    def _requantize(self, lowering: Requantize) -> ir.Value:
        source, output = lowering.reads[0], lowering.node.outputs[0]
        key = (lowering.node.graph, source, lowering.type)
        if key not in self._quantized:
            self._quantized[key] = self._target.write(lowering, self._build)[0]
            self._names.append((output, output.name or "", self._quantized[key]))
        return self._quantized[key]

    def _dequantize(self, lowering: Dequantize) -> ir.Value:
        if lowering.reads:
            return self._build.codes_of(lowering.reads[0])
        source = lowering.plain[0]
        if lowering.type is lowering.internal:
            return source
        key = (lowering.node.graph, source)
        if key not in self._shifted:
            self._shifted[key] = self._target.shift(
                source, lowering.type, lowering.internal, source, self._build
            )
        return self._shifted[key]

    def _plain(self, output: ir.Value, codes: ir.Value) -> ir.Value | None:
        """What readers of ``output`` itself will read; None where there are none."""
        if output not in self._plan.needs_plain:
            return None
        types, build = self._plan.types, self._build
        known = types.get(output)
        assert known is not None
        written = types.code_dtypes.get(output)
        if written is None:
            return self._with_residual(build.dequantize(codes, known.type, output), output)
        if written == known.type.dtype:
            return codes
        zero_point = known.type.zero_point.astype(np.int64) - 128
        shifted = AffineType(known.type.scale, zero_point.astype(np.int8), written)
        return self._target.shift(codes, known.type, shifted, output, build)

    def _with_residual(self, real: ir.Value, output: ir.Value) -> ir.Value:
        """The numbers of an accumulator, and the bias that its codes do not hold."""
        residual = self._plan.types.residuals.get(output)
        if residual is None:
            return real
        addend = self._build.constant(residual.astype(np.float32), f"{output.name}_bias")
        return self._build.insert("Add", [real, addend], output, ir.DataType.FLOAT)

    def _connect(self, old: ir.Value, new: ir.Value) -> None:
        with self._rewriter.step("connect", old.producer()):
            is_output = old.is_graph_output()
            self._rewriter.replace_value(old, new)
            # A rounded value is not what the name stands for in the original.
            if old in self._plan.rounded:
                return
            if not is_output and new.producer() is not None and not new.is_graph_output():
                self._rewriter.swap_names(old, new)
                self._named.add(new)

    def _rename(self, old: ir.Value, name: str, codes: ir.Value) -> None:
        """Give ``codes`` the name of the QuantizeLinear output it stands for."""
        producer = codes.producer()
        if codes in self._named or codes is old or codes.is_graph_output() or producer is None:
            return
        if producer in self._original or old.is_graph_output():
            return
        self._named.add(codes)
        with self._rewriter.step("name-codes", producer):
            if codes.dtype == self._plan.types.code_dtypes[old]:
                self._rewriter.swap_names(old, codes)
            else:
                self._rewriter.rename(codes, f"{name}{RECODED_SUFFIX}")

    def _clean_up(self) -> None:
        for graph in reversed(self._plan.graphs):
            for node in reversed(tuple(graph)):
                if _is_dead(node):
                    with self._rewriter.step("remove-replaced", node):
                        self._rewriter.erase(node)
        for value in self._initializers():
            if value not in self._unused and not use_count(value):
                with self._rewriter.step("remove-replaced-constant"):
                    self._rewriter.remove_initializer(value)

    def _settle_names(self) -> None:
        """Let what was inserted have the names of what it replaced: another fold keeps them."""
        if not self._target.keeps_names:
            return
        left = [
            (value, name)
            for value, name in self._build.names.items()
            if value not in self._named and _is_left(value) and not value.is_graph_output()
        ]
        if left:
            with self._rewriter.step("settle-names"):
                self._rewriter.settle_names(left)

    def _initializers(self) -> list[ir.Value]:
        return [
            value
            for graph in self._plan.graphs
            for value in graph.initializers.values()
            if not value.is_graph_input() and not value.is_graph_output()
        ]


def _is_dead(node: ir.Node) -> bool:
    return not any(use_count(each) or each.is_graph_output() for each in node.outputs)


def _is_left(value: ir.Value) -> bool:
    node = value.producer()
    return value.is_initializer() if node is None else node.graph is not None
