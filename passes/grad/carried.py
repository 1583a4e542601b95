"""Which states of a loop a gradient is carried through from step to step."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxfold.passes.grad.dependence import reached_from


def carried_states(
    body: ir.Graph,
    states: Sequence[tuple[ir.Value, ir.Value]],
    varied: Collection[ir.Value],
    used: Collection[ir.Value],
) -> list[int]:
    """The positions of the states that depend on what is differentiated by, and matter.

    Args:
        body: The body of the loop.
        states: What the body reads, and what it gives for the next step, of each state.
        varied: What the body reads and depends on what is differentiated by.
        used: The outputs of the body whose gradients are given.
    """
    return sorted(_varied(body, states, varied) & _used(body, states, used))


def _varied(
    body: ir.Graph, states: Sequence[tuple[ir.Value, ir.Value]], varied: Collection[ir.Value]
) -> set[int]:
    found: set[int] = set()
    while True:
        starts = [*varied, *(states[index][0] for index in sorted(found))]
        reached = reached_from(starts, body)
        more = {i for i, pair in enumerate(states) if any(value in reached for value in pair)}
        if more == found:
            return found
        found = more


def _used(
    body: ir.Graph, states: Sequence[tuple[ir.Value, ir.Value]], used: Collection[ir.Value]
) -> set[int]:
    reached = [reached_from([before], body) for before, _ in states]
    ends = set(used)
    while True:
        found = {i for i, each in enumerate(reached) if each & ends or states[i][1] in ends}
        more = ends | {states[i][1] for i in found}
        if more == ends:
            return found
        ends = more
