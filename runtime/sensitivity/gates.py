"""Gates between a float model and the quantized one: 0 is the one, 1 the other, layer by layer.

A gate multiplies the error d that quantizing one layer makes: of its weights, its bias and what it
reads. The derivative of a loss by a gate is then g.d, the second derivative d^T H d, whatever
number of weights and activations lies behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.calibrate.counterparts import LayerPair, paired_layers
from onnxfold.runtime.finetune.bias import Bias
from onnxfold.runtime.finetune.quantized_weight import QuantizedWeight

GATE = "gate_"
"""What the inputs are called, numbered."""


@dataclass(frozen=True)
class GatedLayer:
    """A layer with a gate.

    Attributes:
        name: Of its node in the quantized model; ``output <name>`` for a rounded output.
        gate: Name of the input; float32, one number.
        bits: Of its weights' codes; 0 where they are not quantized.
    """

    name: str
    gate: str
    bits: int


@dataclass(frozen=True, eq=False)
class GatedModel:
    """A model with gates.

    Attributes:
        model: The model.
        layers: Its gated layers.
    """

    model: ir.Model
    layers: tuple[GatedLayer, ...]


def gated(original: ir.Model, quantized: ir.Model) -> GatedModel:
    """The quantized model with a gate for each node that reads codes, and each rounded output.

    Args:
        original: The float model; not changed.
        quantized: What was made of it, prepared for gradients; changed.

    Raises:
        UsageError: The models have no layer in common, or nothing is quantized.
    """
    pairs = {each.quantized.node: each for each in paired_layers(original, quantized)}
    # New nodes read codes too: only what is there now is looked at.
    nodes = list(quantized.graph)
    rewriter = Rewriter(quantized, "sensitivity")
    layers: list[GatedLayer] = []
    with rewriter.step("add-gates"):
        for node in nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                continue
            errors = _errors(node, pairs.get(node))
            if not errors:
                continue
            bits = _bits(node)
            name = f"{GATE}{len(layers)}"
            gate = rewriter.add_input(name, ir.DataType.FLOAT, ())
            for each in errors:
                each.insert(gate, rewriter)
            layers.append(GatedLayer(node_name(node), gate.name or name, bits))
        for output in list(quantized.graph.outputs):
            exact = _before_pair(output)
            if exact is None:
                continue
            output_name = f"output {output.name}"
            gate = rewriter.add_input(f"{GATE}{len(layers)}", ir.DataType.FLOAT, ())
            _gate_output(output, exact, gate, rewriter)
            layers.append(GatedLayer(output_name, gate.name or "", 0))
    if not layers:
        raise UsageError("nothing in the quantized model reads what was quantized")
    return GatedModel(quantized, tuple(layers))


@dataclass(frozen=True, eq=False)
class _Error:
    """What one input of a node is in both models.

    Attributes:
        reader: The node.
        index: The input.
        exact: The value in the float model, computed or constant.
        error: The constant error; None where it is computed: what is read, less ``exact``.
    """

    reader: ir.Node
    index: int
    exact: ir.Value | Array
    error: Array | None = None

    def insert(self, gate: ir.Value, rewriter: Rewriter) -> None:
        """Let the node read ``exact + gate * error``."""
        read = self.reader.inputs[self.index]
        assert read is not None
        name = f"{read.name}_gated"

        def op(op_type: str, *inputs: ir.Value) -> ir.Value:
            return rewriter.insert(
                self.reader, op_type, list(inputs), name=name, dtype=read.dtype, shape=read.shape
            )

        exact, error = self.exact, self.error
        if not isinstance(exact, ir.Value):
            exact = rewriter.constant(self.reader, exact, name=f"{read.name}_exact")
        if error is None:
            wrong = op("Sub", read, exact)
        else:
            wrong = rewriter.constant(self.reader, error, name=f"{read.name}_error")
        rewriter.set_input(self.reader, self.index, op("Add", exact, op("Mul", wrong, gate)))


def _errors(node: ir.Node, pair: LayerPair | None) -> list[_Error]:
    found = [_activation(node, index) for index in range(len(node.inputs))]
    if pair is not None:
        found += [_weight(pair), _bias(pair)]
    return [each for each in found if each is not None]


def _activation(node: ir.Node, index: int) -> _Error | None:
    """The error of an input behind a Q/DQ pair."""
    exact = _before_pair(node.inputs[index])
    return None if exact is None else _Error(node, index, exact)


def _before_pair(value: ir.Value | None) -> ir.Value | None:
    """What a Q/DQ pair was given that puts out ``value``; None where there is no such pair."""
    dequantize = None if value is None else value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    codes = dequantize.inputs[0]
    quantize = None if codes is None else codes.producer()
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    return quantize.inputs[0]


def _gate_output(output: ir.Value, exact: ir.Value, gate: ir.Value, rewriter: Rewriter) -> None:
    """Let the model put out ``exact + gate * (output - exact)``."""
    anchor = output.producer()
    assert anchor is not None
    made: list[ir.Node] = []

    def op(op_type: str, left: ir.Value, right: ir.Value) -> ir.Value:
        result = rewriter.insert(
            made[-1] if made else anchor,
            op_type,
            [left, right],
            name=f"{output.name}_gated",
            dtype=output.dtype,
            shape=output.shape,
            after=True,
        )
        producer = result.producer()
        assert producer is not None
        made.append(producer)
        return result

    mixed = op("Add", exact, op("Mul", op("Sub", output, exact), gate))
    rewriter.replace_value(output, mixed, keep=made)


def _weight(pair: LayerPair) -> _Error | None:
    weight = _quantized_weight(pair.quantized.node)
    wanted = constant_array(pair.original.node.inputs[1])
    if weight is None or wanted is None or wanted.shape != weight.codes.shape:
        return None
    exact = wanted.astype(np.float32)
    return _Error(pair.quantized.node, 1, exact, weight.real(weight.codes, weight.scale) - exact)


def _bias(pair: LayerPair) -> _Error | None:
    """The error of a bias; one that only the quantized model has is an error altogether."""
    bias, wanted = Bias.match(pair.quantized.node), Bias.match(pair.original.node)
    if bias is None or (wanted is None and len(pair.original.node.inputs) > 2):
        return None
    if wanted is not None and wanted.real.size != bias.real.size:
        return None
    exact: Array = np.zeros_like(bias.real)
    if wanted is not None:
        exact = wanted.real.reshape(bias.real.shape)
    reader, index = next(iter(bias.value.uses()))
    return _Error(reader, index, exact, bias.real - exact)


def _quantized_weight(node: ir.Node) -> QuantizedWeight | None:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    producer = None if value is None else value.producer()
    return None if producer is None else QuantizedWeight.match(producer)


def _bits(node: ir.Node) -> int:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    producer = None if value is None else value.producer()
    codes = None if producer is None or not producer.inputs else producer.inputs[0]
    return 0 if codes is None or codes.dtype is None else int(codes.dtype.bitwidth)


def opened(layers: tuple[GatedLayer, ...], which: Mapping[str, float]) -> dict[str, Array]:
    """What the gates are fed: ``which`` by name of layer, 0 for all others."""
    return {each.gate: np.array(which.get(each.name, 0.0), np.float32) for each in layers}
