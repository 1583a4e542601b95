"""The gradient of LSTM.

Gates of all steps come from one matrix product, cell states from one Scan over them; one Scan
backward carries the gradients of the hidden and the cell state, and gives those of the gates:

    dc' = dc + dh o h'(C),  d(i, o, f, c) = (dc' A_i, dh A_o, dc' A_f, dc' A_c)

with dh the gradient of the step's hidden state, and factors A that no gradient enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.grad.bodies import BodyBuilder
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.rules.recurrent import Activation, Direction, Layer
from onnxfold.passes.grad.scans import Values, scan
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("LSTM")
def lstm(call: Call, b: Builder) -> Gradients:
    """Gradients of input, weights, biases, initial states and peepholes."""
    layer = Layer(call, b, 4, ["Sigmoid", "Tanh", "Tanh"])
    directions = layer.directions()
    found = [_backward(layer, direction) for direction in directions]
    gates = [layer.rows(each.gates) for each in found]
    gradients = [*layer.of_parameters(gates, directions), *[None] * 4]
    need = [*call.needed, *[False] * 8]
    if need[5]:
        gradients[5] = layer.join([each.hidden for each in found])
    if need[6]:
        gradients[6] = layer.join([each.cell for each in found])
    if need[7]:
        gradients[7] = layer.join([_peepholes(layer, each) for each in found])
    return gradients


@dataclass(frozen=True)
class _Found:
    """What the Scan backward gives of one direction, and the cell states it went over.

    Attributes:
        hidden: The gradient of the initial hidden state, [N, H].
        cell: The gradient of the initial cell state, [N, H].
        gates: The gradients of the gates before their activations, [T, N, 4 H].
        cells: The cell states after each step, [T, N, H].
        cells_before: Those before it.
    """

    hidden: ir.Value
    cell: ir.Value
    gates: ir.Value
    cells: ir.Value
    cells_before: ir.Value


@dataclass(frozen=True)
class _Gates:
    """The gates of all steps, [T, N, H] each, before what peepholes add; and the peepholes."""

    i: ir.Value
    o: ir.Value
    f: ir.Value
    c: ir.Value
    peepholes: Sequence[ir.Value] | None

    def with_peephole(self, gate: ir.Value, index: int, cell: ir.Value, b: Builder) -> ir.Value:
        if self.peepholes is None:
            return gate
        return b.add(gate, b.mul(self.peepholes[index], cell))


def _gates(layer: Layer, direction: Direction) -> _Gates:
    b = layer.b
    bias = None if direction.biases is None else b.add(*direction.biases)
    driven = b.op("Gemm", direction.rows, direction.w, bias, transB=1)
    all_gates = b.op("Gemm", direction.before, direction.r, driven, transB=1)
    i, o, f, c = b.nodes("Split", [layer.stacked(all_gates)], 4, axis=2, num_outputs=4)
    peepholes, parts = layer.call.optional(7), None
    if peepholes is not None:
        own = layer.part(peepholes, direction.number)
        parts = b.nodes("Split", [own], 3, axis=0, num_outputs=3)
    return _Gates(i, o, f, c, parts)


def _cells(layer: Layer, direction: Direction, gates: _Gates, first: ir.Value) -> ir.Value:
    """The cell states after each step, [T, N, H]."""
    b, (gate, candidate, _) = layer.b, direction.activations
    coupled = bool(layer.call.int("input_forget", 0))
    proposed = candidate.apply(gates.c, b)

    def with_peepholes(
        body: BodyBuilder, states: Values, elements: Values
    ) -> tuple[Values, Values]:
        (cell,), (i, f, c) = states, elements
        i = gate.apply(gates.with_peephole(i, 0, cell, body), body)
        f = _forget(body, i, gates.with_peephole(f, 2, cell, body), gate, coupled)
        following = body.add(body.mul(f, cell), body.mul(i, c))
        return [following], [following]

    def linear(body: BodyBuilder, states: Values, elements: Values) -> tuple[Values, Values]:
        following = body.add(body.mul(elements[0], states[0]), elements[1])
        return [following], [following]

    if gates.peepholes is not None:
        return scan(b, [first], [gates.i, gates.f, proposed], with_peepholes)[1]
    i = gate.apply(gates.i, b)
    f = _forget(b, i, gates.f, gate, coupled)
    return scan(b, [first], [f, b.mul(i, proposed)], linear)[1]


def _forget(b: Builder, i: ir.Value, f: ir.Value, gate: Activation, coupled: bool) -> ir.Value:
    return b.sub(b.number(1.0, i), i) if coupled else gate.apply(f, b)


@dataclass(frozen=True)
class _Factors:
    """What gradients are multiplied with on their way back through a step, [T, N, ...].

    Attributes:
        gates: From (dc, dh, dc, dc) to the gates, [T, N, 4 H].
        hidden: From dh to dc.
        cell: From dc to that of the step before.
    """

    gates: ir.Value
    hidden: ir.Value
    cell: ir.Value


def _factors(
    layer: Layer, direction: Direction, gates: _Gates, before: ir.Value, after: ir.Value
) -> _Factors:
    call, b, (gate, candidate, output) = layer.call, layer.b, direction.activations
    i, i_slope = gate.with_slope(gates.with_peephole(gates.i, 0, before, b), call, b)
    o, o_slope = gate.with_slope(gates.with_peephole(gates.o, 1, after, b), call, b)
    c, c_slope = candidate.with_slope(gates.c, call, b)
    squashed, slope = output.with_slope(after, call, b)
    of_i, of_o, of_c = b.mul(c, i_slope), b.mul(squashed, o_slope), b.mul(i, c_slope)
    if call.int("input_forget", 0):
        f = b.sub(b.number(1.0, i), i)
        of_i, of_f = b.sub(of_i, b.mul(before, i_slope)), b.zeros_like(of_i)
    else:
        f, f_slope = gate.with_slope(gates.with_peephole(gates.f, 2, before, b), call, b)
        of_f = b.mul(before, f_slope)
    hidden, cell = b.mul(o, slope), f
    if gates.peepholes is not None:
        p_i, p_o, p_f = gates.peepholes
        hidden = b.add(hidden, b.mul(of_o, p_o))
        cell = b.add(cell, b.add(b.mul(of_i, p_i), b.mul(of_f, p_f)))
    joined = b.op("Concat", of_i, of_o, of_f, of_c, axis=2)
    return _Factors(
        layer.where_valid(direction, joined, 0.0),
        layer.where_valid(direction, hidden, 0.0),
        layer.where_valid(direction, cell, 1.0),
    )


def _backward(layer: Layer, direction: Direction) -> _Found:
    gates = _gates(layer, direction)
    first = layer.state(6, direction.number)
    cells = _cells(layer, direction, gates, first)
    before = layer.before(first, cells)
    factors = _factors(layer, direction, gates, before, cells)

    def step(body: BodyBuilder, states: Values, elements: Values) -> tuple[Values, Values]:
        hidden, cell = states
        of_gates, of_hidden, of_cell, *given = elements
        hidden = layer.with_output_gradient(body, direction, hidden, given)
        cell = body.add(cell, body.mul(hidden, of_hidden))
        both = body.op("Concat", cell, hidden, cell, cell, axis=1)
        d_gates = body.mul(both, of_gates)
        earlier = layer.held(
            body, direction, body.op("MatMul", d_gates, direction.r), hidden, given
        )
        return [earlier, body.mul(cell, of_cell)], [d_gates]

    initial = [direction.d_h, layer.state_gradient(2, direction.number)]
    scanned = [factors.gates, factors.hidden, factors.cell, *layer.given(direction)]
    hidden, cell, d_gates = scan(layer.b, initial, scanned, step, reverse=True)
    return _Found(hidden, cell, d_gates, cells, before)


def _peepholes(layer: Layer, found: _Found) -> ir.Value:
    """The gradient of the peepholes of a direction, [3 H]: of i, o and f."""
    b = layer.b
    d_i, d_o, d_f, _ = b.nodes("Split", [found.gates], 4, axis=2, num_outputs=4)
    products = (
        b.mul(d_i, found.cells_before),
        b.mul(d_o, found.cells),
        b.mul(d_f, found.cells_before),
    )
    return b.op("Concat", *(b.reduce_sum(p, 0, 1, keepdims=False) for p in products), axis=0)
