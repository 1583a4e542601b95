"""Pass ``store-float16``: halves the size of weights and computes as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import constant_array
from onnxfold.passes.quantize.float16_constants import LARGEST, to_float16
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs

_ONLY_CONSTANT = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class StoreFloat16(Pass):
    """Store float32 initializers as float16, with a Cast behind each.

    ONNX Runtime carries the Cast out when it loads the model: half the file, the speed and the
    float32 arithmetic of before. Tensors with values beyond 65504 stay, with a remark, and so do
    scales of Q/DQ and constants of operators outside ai.onnx, which have to be constants. Run it
    last: ``fold-constants`` would carry the Casts out.

    Attributes:
        smallest: Tensors of fewer elements stay: the Cast costs more than it saves.
    """

    smallest: int = 256

    name: ClassVar[str] = "store-float16"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Convert the initializers of every graph."""
        for graph in list(all_graphs(model)):
            for value in list(graph.initializers.values()):
                if not self._is_weight(value):
                    continue
                array = constant_array(value)
                first = next(iter(graph), None)
                if array is not None and first is not None:
                    _store(value, first, rewriter)

    def _is_weight(self, value: ir.Value) -> bool:
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < self.smallest:
            return False
        if value.is_graph_input() or value.is_graph_output():
            return False
        readers = [use.node for use in value.uses()]
        return bool(readers) and not any(
            node.domain or node.op_type in _ONLY_CONSTANT for node in readers
        )


def _store(value: ir.Value, first: ir.Node, rewriter: Rewriter) -> None:
    array = constant_array(value)
    assert array is not None
    if bool(np.any(np.isfinite(array) & (np.abs(array) > LARGEST))):
        reader = next(iter(value.uses())).node
        rewriter.remark(reader, f"'{value.name}' stays float32: it has values beyond {LARGEST:g}")
        return
    half, lost = to_float16(array)
    if lost:
        rewriter.remark(next(iter(value.uses())).node, f"'{value.name}' in float16: {lost}")
    graph = value.graph
    assert graph is not None
    with rewriter.step("store-half", first):
        stored = rewriter.add_initializer(graph, half, name=f"{value.name}_half")
        real = rewriter.insert(
            first,
            "Cast",
            [stored],
            name=f"{value.name}_float",
            attributes={"to": int(ir.DataType.FLOAT)},
            dtype=ir.DataType.FLOAT,
            shape=value.shape,
        )
        rewriter.replace_value(value, real)
        rewriter.remove_initializer(value)
