"""Pass ``convert-float16``: lets a model compute in float16, but for what would overflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import constant_array, constant_tensor
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.io_types import KEY, IoType, float_edges, io_types_text, read_io_types
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.float16_constants import LARGEST, to_float16
from onnxfold.passes.quantize.float16_types import Float16Plan, plan_float16
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.unused import drop_unused
from onnxfold.passes.walk import all_graphs, all_nodes

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Convert float32 tensors to float16, with Casts where both meet.

    For size and for GPUs and NPUs. ONNX Runtime's CPU kernels compute in float32 and are handed
    float16 through Casts of its own: slower than the float32 model; ``store-float16`` is what
    makes a model smaller there. What stays float32: operators without a float16 form, control
    flow at its edges (not inside), Q/DQ, sizes computed in float, operators outside ai.onnx, and
    what ``keep`` and ``ranges`` say. Constants beyond 65504 are clipped, with a remark.

    Attributes:
        keep: Operators, or names of nodes (of the first output where there is none), that stay
            float32.
        io: The type of the model's float inputs and outputs.
        ranges: What values tensors take, from ``onnxfold.runtime.calibrate``: operators that
            read or make too large ones stay float32.
        margin: A value is too large from 65504 / margin on.
    """

    keep: tuple[str, ...] = ()
    io: Literal["float32", "float16"] = "float32"
    ranges: Ranges | None = None
    margin: float = 4.0

    name: ClassVar[str] = "convert-float16"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    @property
    def changes_interface(self) -> bool:
        """Where inputs and outputs are to be float16."""
        return self.io == "float16"

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Convert every graph.

        Raises:
            UsageError: ``keep`` names nothing, or ``margin`` is not above 0.
            PassError: Types are not known, or there are local functions.
        """
        self._check(model)
        if model.functions:
            raise PassError(
                "convert-float16: types inside local functions are not known: run inline-functions "
                "first"
            )
        ranges = self.ranges if self.ranges is not None else Ranges({})
        largest = {name: max(-low, high) for name, (low, high) in ranges.items()}
        plan = plan_float16(model, rewriter, self.keep, largest, LARGEST / self.margin)
        for node, reason in plan.kept.items():
            rewriter.remark(node, f"it stays float32: {reason}")
        before = float_edges(model)
        converter = _Converter(plan, rewriter)
        if self.io == "float16":
            converter.convert_inputs(model)
        converter.convert_nodes(model)
        converter.convert_outputs(model, keep_main=self.io == "float16")
        if self.io == "float16":
            _record(model, before, rewriter)

    def _check(self, model: ir.Model) -> None:
        if not self.margin > 0:
            raise UsageError(f"convert-float16: margin={self.margin:g} is not above 0")
        known = {node_name(node) for node in all_nodes(model)}
        known |= {node.op_type for node in all_nodes(model)}
        for name in self.keep:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UsageError(f"convert-float16: no node and no operator '{name}'{hint}")


def _record(model: ir.Model, before: frozenset[str], rewriter: Rewriter) -> None:
    """Write down which inputs and outputs were float32."""
    changed = before - float_edges(model)
    if changed:
        types = read_io_types(model) | dict.fromkeys(changed, IoType(_HALF))
        with rewriter.step("record-types"):
            rewriter.set_metadata(KEY, io_types_text(types))


class _Converter:
    """Carries a plan out: Casts where values of both types meet."""

    def __init__(self, plan: Float16Plan, rewriter: Rewriter) -> None:
        self._plan = plan
        self._rewriter = rewriter
        self._halves = set(plan.values)
        self._casts: dict[tuple[ir.Value, ir.Graph | None], ir.Value] = {}
        self._constants: dict[ir.Value, ir.Value] = {}

    def convert_inputs(self, model: ir.Model) -> None:
        """Let the model's float inputs be float16."""
        for value in model.graph.inputs:
            if value.dtype == _FLOAT and not value.is_initializer():
                with self._rewriter.step("convert-input"):
                    self._rewriter.set_type(value, _HALF)
                self._halves.add(value)

    def convert_nodes(self, model: ir.Model) -> None:
        """Convert outputs of nodes; cast what they read."""
        for node in list(all_nodes(model)):
            half = self._plan.nodes.get(node)
            for index, value in enumerate(node.inputs):
                if value is None:
                    continue
                wanted = half is not None and index in half
                if wanted != (value in self._halves) and (wanted or value in self._halves):
                    self._cast_input(node, index, value, wanted=wanted)
            made = [value for value in node.outputs if value in self._plan.values]
            if not made:
                continue
            with self._rewriter.step("convert-node", node):
                for value in made:
                    self._rewriter.set_type(value, _HALF)
                self._convert_attributes(node)

    def convert_outputs(self, model: ir.Model, *, keep_main: bool) -> None:
        """Let outputs of graphs be of the type they were, but for those of the main graph."""
        for graph in list(all_graphs(model)):
            for value in dict.fromkeys(graph.outputs):
                producer = value.producer()
                half = value in self._halves
                is_float = half or value.dtype == _FLOAT
                wanted = keep_main and graph is model.graph and is_float
                if half == wanted or producer is None:
                    continue
                with self._rewriter.step("convert-output", producer):
                    readers = {use.node for use in value.uses()}
                    kind = _HALF if wanted else _FLOAT
                    new = self._cast(producer, value, kind, after=True)
                    self._rewriter.replace_value(value, new, keep=readers)
                    self._rewriter.set_type(new, kind)

    def _cast_input(self, node: ir.Node, index: int, value: ir.Value, *, wanted: bool) -> None:
        rewriter = self._rewriter
        with rewriter.step("cast-input", node):
            if constant_tensor(value) is not None:
                rewriter.set_input(node, index, self._constant(node, value))
                drop_unused(value, rewriter)
                return
            key = value, node.graph
            if key not in self._casts:
                kind = _HALF if wanted else _FLOAT
                self._casts[key] = self._cast(node, value, kind, after=False)
            rewriter.set_input(node, index, self._casts[key])

    def _constant(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The float16 form of a constant, which every graph below that of ``value`` can read."""
        if value in self._constants:
            return self._constants[value]
        array = constant_array(value)
        assert array is not None
        half, lost = to_float16(array)
        if lost:
            self._rewriter.remark(node, f"'{value.name}' in float16: {lost}")
        name = f"{value.name}_half"
        if not value.is_initializer() or value.graph is None:
            return self._rewriter.constant(node, half, name=name)
        self._constants[value] = self._rewriter.add_initializer(value.graph, half, name=name)
        return self._constants[value]

    def _cast(
        self, anchor: ir.Node, value: ir.Value, kind: ir.DataType, *, after: bool
    ) -> ir.Value:
        return self._rewriter.insert(
            anchor,
            "Cast",
            [value],
            name=f"{value.name}_{'half' if kind == _HALF else 'float'}",
            attributes={"to": int(kind)},
            dtype=kind,
            shape=value.shape,
            after=after,
        )

    def _convert_attributes(self, node: ir.Node) -> None:
        if node.op_type == "Cast":
            self._rewriter.set_attribute(node, "to", int(_HALF))
        if node.op_type == "ConstantOfShape":
            attribute = node.attributes.get("value")
            array = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
            half, lost = to_float16(array)
            if lost:
                self._rewriter.remark(node, f"its value in float16: {lost}")
            self._rewriter.set_attribute(node, "value", ir.tensor(half))
