"""The gradient of RNN: one Scan backward carries the gradient of the hidden state."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.bodies import BodyBuilder
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.rules.recurrent import Direction, Layer
from onnxfold.passes.grad.scans import Values, scan
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("RNN")
def rnn(call: Call, b: Builder) -> Gradients:
    """Gradients of input, weights, biases and the initial state."""
    layer = Layer(call, b, 1, ["Tanh"])
    directions = layer.directions()
    found = [_backward(layer, direction) for direction in directions]
    gates = [layer.rows(each) for _, each in found]
    gradients = [*layer.of_parameters(gates, directions), *[None] * 2]
    need = [*call.needed, *[False] * 6]
    if need[5]:
        gradients[5] = layer.join([first for first, _ in found])
    return gradients


def _backward(layer: Layer, direction: Direction) -> tuple[ir.Value, ir.Value]:
    """The gradients of the initial state, [N, H], and before the activation, [T, N, H]."""
    b, (activation,) = layer.b, direction.activations
    bias = None if direction.biases is None else b.add(*direction.biases)
    driven = b.op("Gemm", direction.rows, direction.w, bias, transB=1)
    total = layer.stacked(b.op("Gemm", direction.before, direction.r, driven, transB=1))
    _, slope = activation.with_slope(total, layer.call, b)

    def step(body: BodyBuilder, states: Values, elements: Values) -> tuple[Values, Values]:
        factor, *given = elements
        hidden = layer.with_output_gradient(body, direction, states[0], given)
        inner = body.mul(hidden, factor)
        earlier = body.op("MatMul", inner, direction.r)
        return [layer.held(body, direction, earlier, hidden, given)], [inner]

    scanned = [layer.where_valid(direction, slope, 0.0), *layer.given(direction)]
    first, gates = scan(b, [direction.d_h], scanned, step, reverse=True)
    return first, gates
