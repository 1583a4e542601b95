"""Pairs the linear operators of a quantized model with those of the float model it came from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.linear_outputs import LinearOutput
from onnxfold.passes.registry import parse_passes


@dataclass(frozen=True, eq=False)
class LayerPair:
    """A linear operator in both models.

    Attributes:
        name: The name of the quantized model's node.
        quantized: The operator there.
        original: The operator in the float model.
    """

    name: str
    quantized: LinearOutput
    original: LinearOutput

    @property
    def original_name(self) -> str:
        """What the float model calls the operator's output."""
        return self.original.value.name or ""


def paired_layers(original: ir.Model, quantized: ir.Model) -> list[LayerPair]:
    """The linear operators both models have: in the same order, or else of the same names.

    Raises:
        UsageError: There are none.
    """
    old, new = _outputs(original), _outputs(quantized)
    names = Counter(node_name(node) for node in quantized.graph)
    if [_kind(each) for each in old] == [_kind(each) for each in new]:
        # Quantizing renames what computes a graph output: only the order always stays.
        pairs = list(zip(new, old, strict=True))
    else:
        known = {node_name(each.node): each for each in old}
        named = ((each, known.get(node_name(each.node))) for each in new)
        pairs = [(each, found) for each, found in named if found and _kind(each) == _kind(found)]
    layers = [
        LayerPair(node_name(each.node), each, found)
        for each, found in pairs
        if names[node_name(each.node)] == 1
    ]
    if not layers:
        raise UsageError(
            "the quantized model has no linear operator of the float model's: was it made of it?"
        )
    return layers


def typed(model: ir.Model) -> ir.Model:
    """A copy in which the types of intermediate values are known."""
    return Pipeline(parse_passes("infer-shapes")).run(model.clone()).model


def _outputs(model: ir.Model) -> list[LinearOutput]:
    found = (LinearOutput.match(node) for node in model.graph)
    return [each for each in found if each is not None]


def _kind(output: LinearOutput) -> tuple[str, int]:
    return output.node.op_type, output.channels
