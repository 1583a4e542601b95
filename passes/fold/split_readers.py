"""Convolutions that two quantizers round: one integer convolution for each, for ONNX Runtime.

Microseconds of CPU time in ONNX Runtime 1.32 on one thread, x86-64 with AVX512-VNNI: a convolution
in float, quantized twice, against two QLinearConv; channels, size, kernel in front.

    64, 56x56, 3x3    2393 against 1247      32, 28x28, 3x3          159 against 96
    64, 56x56, 1x1     454 against 249       16, 32x32, 3x3           67 against 52
    128, 14x14, 3x3    587 against 309       8, 32x32, 3x3            40 against 45
    256, 7x7, 1x1       78 against 46        64, 28x28, depthwise     60 against 67
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.types import TypeState, is_dequantize
from onnxfold.passes.fold.wants import find_wants, is_dequantized, want_of_use
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs

_FEWEST_CHANNELS = 16


@dataclass(frozen=True)
class SplitReaders(Pass):
    """Compute a convolution twice where its result is quantized in two ways, and nothing else.

    Two integer convolutions are faster than one of real numbers, but for few channels and groups.
    """

    name: ClassVar[str] = "split-readers"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Copy each such Conv for the second type."""
        graphs = tuple(all_graphs(model))
        types = TypeState(recode=False)
        find_wants(graphs, types)
        for node in [each for graph in graphs for each in graph]:
            if node.op_type == "Conv" and not node.domain and _becomes_integer(node, types):
                _split(node, types, rewriter)


def _becomes_integer(node: ir.Node, types: TypeState) -> bool:
    """Whether data and weights are quantized, and an integer kernel is the faster one."""
    dequantize = None if node.inputs[1] is None else node.inputs[1].producer()
    if dequantize is None or not is_dequantize(dequantize) or len(node.outputs) != 1:
        return False
    affine, codes = types.parameters(dequantize), constant_array(dequantize.inputs[0])
    if affine is None or codes is None or affine.axis not in (None, 0):
        return False
    if affine.dtype.bitwidth != 8 or codes.shape[0] < _FEWEST_CHANNELS:
        return False
    return node.attributes.get_int("group", 1) == 1 and is_dequantized(node.inputs[0], types)


def _split(node: ir.Node, types: TypeState, rewriter: Rewriter) -> None:
    output, readers = node.outputs[0], dict[AffineType, list[tuple[ir.Node, int]]]()
    for reader, index in output.uses():
        want = want_of_use(reader, index, types)
        if want is None:
            return
        readers.setdefault(want, []).append((reader, index))
    if len(readers) != 2 or output.is_graph_output():
        return
    (_, _), (_, moved) = readers.items()
    with rewriter.step("split-readers", node):
        copy = rewriter.insert(
            node,
            "Conv",
            node.inputs,
            name=f"{output.name}_again",
            attributes=node.attributes,
            dtype=output.dtype,
            shape=output.shape,
            after=True,
        )
        for reader, index in moved:
            rewriter.set_input(reader, index, copy)
