"""The gradient of GRU.

Gates of all steps come from one matrix product; one Scan backward carries the gradient of the
hidden state, with factors that no gradient enters:

    d(z, r, h) = (dh A_z, dh A_r, dh A_h)

where the reset gate acts behind the matrix product (``linear_before_reset``); in front of it, the
gradient of the reset gate goes through that product once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.grad.bodies import BodyBuilder
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.rules.recurrent import Direction, Layer
from onnxfold.passes.grad.scans import Values, scan
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("GRU")
def gru(call: Call, b: Builder) -> Gradients:
    """Gradients of input, weights, biases and the initial state."""
    layer = Layer(call, b, 3, ["Sigmoid", "Tanh"])
    directions = layer.directions()
    write = _reset_after if call.int("linear_before_reset", 0) else _reset_before
    found = [write(layer, direction) for direction in directions]
    gradients: list[ir.Value | None] = [None] * 6
    need = [*call.needed, *[False] * 6]
    if need[0]:
        gradients[0] = layer.d_x([each.of_input for each in found], directions)
    if need[1]:
        pairs = zip(found, directions, strict=True)
        gradients[1] = layer.join([b.op("Gemm", f.of_input, d.rows, transA=1) for f, d in pairs])
    if need[2]:
        gradients[2] = layer.join([each.recurrence for each in found])
    if need[3]:
        gradients[3] = layer.join([_biases(each, b) for each in found])
    if need[5]:
        gradients[5] = layer.join([each.hidden for each in found])
    return gradients


@dataclass(frozen=True)
class _Found:
    """Gradients of one direction.

    Attributes:
        hidden: Of the initial hidden state, [N, H].
        of_input: Of what the input drives the gates with, [T N, 3 H].
        of_state: Of what the hidden state drives them with, its biases included, [T N, 3 H].
        recurrence: Of the weights of the hidden state, [3 H, H].
    """

    hidden: ir.Value
    of_input: ir.Value
    of_state: ir.Value
    recurrence: ir.Value


def _biases(found: _Found, b: Builder) -> ir.Value:
    parts = (found.of_input, found.of_state)
    return b.op("Concat", *(b.reduce_sum(p, 0, keepdims=False) for p in parts), axis=0)


def _driven(layer: Layer, direction: Direction) -> tuple[Sequence[ir.Value], ir.Value | None]:
    """What the input drives the gates z, r and h with, [T, N, H] each; the biases of the state."""
    b = layer.b
    own, of_state = direction.biases or (None, None)
    driven = b.op("Gemm", direction.rows, direction.w, own, transB=1)
    return b.nodes("Split", [layer.stacked(driven)], 3, axis=2, num_outputs=3), of_state


def _reset_after(layer: Layer, direction: Direction) -> _Found:
    call, b, (gate, candidate) = layer.call, layer.b, direction.activations
    (x_z, x_r, x_h), bias = _driven(layer, direction)
    recurrent = b.op("Gemm", direction.before, direction.r, bias, transB=1)
    h_z, h_r, h_h = b.nodes("Split", [layer.stacked(recurrent)], 3, axis=2, num_outputs=3)
    z, z_slope = gate.with_slope(b.add(x_z, h_z), call, b)
    r, r_slope = gate.with_slope(b.add(x_r, h_r), call, b)
    h, h_slope = candidate.with_slope(b.add(x_h, b.mul(r, h_h)), call, b)
    of_z, of_h, kept = _mixed(layer, direction, (z, z_slope), (h, h_slope))
    of_r = b.mul(of_h, b.mul(h_h, r_slope))
    of_state = b.op("Concat", of_z, of_r, b.mul(of_h, r), axis=2)

    def step(body: BodyBuilder, states: Values, elements: Values) -> tuple[Values, Values]:
        factors, keep, *given = elements
        hidden = layer.with_output_gradient(body, direction, states[0], given)
        gates = body.mul(body.op("Concat", hidden, hidden, hidden, axis=1), factors)
        earlier = body.op("MatMul", gates, direction.r)
        return [body.add(earlier, body.mul(hidden, keep))], [gates, hidden]

    scanned = [of_state, kept, *layer.given(direction)]
    first, d_state, d_hidden = scan(b, [direction.d_h], scanned, step, reverse=True)
    d_z, d_r, _ = b.nodes("Split", [d_state], 3, axis=2, num_outputs=3)
    d_input = b.op("Concat", d_z, d_r, b.mul(d_hidden, of_h), axis=2)
    rows = layer.rows(d_state)
    recurrence = b.op("Gemm", rows, direction.before, transA=1)
    return _Found(first, layer.rows(d_input), rows, recurrence)


def _reset_before(layer: Layer, direction: Direction) -> _Found:
    call, b, (gate, candidate) = layer.call, layer.b, direction.activations
    (x_z, x_r, x_h), bias = _driven(layer, direction)
    width = layer.hidden
    both, last = b.nodes("Split", [direction.r, b.ints(2 * width, width)], 2, axis=0)
    bias_both, bias_last = None, None
    if bias is not None:
        bias_both, bias_last = b.nodes("Split", [bias, b.ints(2 * width, width)], 2, axis=0)
    recurrent = b.op("Gemm", direction.before, both, bias_both, transB=1)
    h_z, h_r = b.nodes("Split", [layer.stacked(recurrent)], 2, axis=2, num_outputs=2)
    z, z_slope = gate.with_slope(b.add(x_z, h_z), call, b)
    r, r_slope = gate.with_slope(b.add(x_r, h_r), call, b)
    before = layer.stacked(direction.before)
    reset = layer.rows(b.mul(r, before))
    h_h = layer.stacked(b.op("Gemm", reset, last, bias_last, transB=1))
    h, h_slope = candidate.with_slope(b.add(x_h, h_h), call, b)
    of_z, of_h, kept = _mixed(layer, direction, (z, z_slope), (h, h_slope))
    of_r = b.mul(before, r_slope)

    def step(body: BodyBuilder, states: Values, elements: Values) -> tuple[Values, Values]:
        z_factor, h_factor, r_factor, gate_r, keep, *given = elements
        hidden = layer.with_output_gradient(body, direction, states[0], given)
        d_h = body.mul(hidden, h_factor)
        d_reset = body.op("MatMul", d_h, last)
        d_both = body.op("Concat", body.mul(hidden, z_factor), body.mul(d_reset, r_factor), axis=1)
        earlier = body.add(body.op("MatMul", d_both, both), body.mul(d_reset, gate_r))
        return [body.add(earlier, body.mul(hidden, keep))], [d_both, d_h]

    scanned = [of_z, of_h, of_r, r, kept, *layer.given(direction)]
    first, d_both, d_h = scan(b, [direction.d_h], scanned, step, reverse=True)
    d_gates = layer.rows(b.op("Concat", d_both, d_h, axis=2))
    parts = (
        b.op("Gemm", layer.rows(d_both), direction.before, transA=1),
        b.op("Gemm", layer.rows(d_h), reset, transA=1),
    )
    return _Found(first, d_gates, d_gates, b.op("Concat", *parts, axis=0))


def _mixed(
    layer: Layer,
    direction: Direction,
    update: tuple[ir.Value, ir.Value],
    candidate: tuple[ir.Value, ir.Value],
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Factors of h' = (1 - z) h~ + z h: from dh' to z and h~ before activation, and to h."""
    b, (z, z_slope), (h, h_slope) = layer.b, update, candidate
    of_z = b.mul(b.sub(layer.stacked(direction.before), h), z_slope)
    of_h = b.mul(b.sub(b.number(1.0, z), z), h_slope)
    return (
        layer.where_valid(direction, of_z, 0.0),
        layer.where_valid(direction, of_h, 0.0),
        layer.where_valid(direction, z, 1.0),
    )
