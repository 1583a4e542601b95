"""Two layouts for every tensor around a Transpose, and the cheapest choice between them.

From a Transpose on, whatever carries layouts is followed in all directions: each node has a layout
that it is in (its own) and one that it could be in, so that no transposes stand between them.
Operators that carry none, inputs and outputs stay as they are. Which nodes change is the cheapest
cut between those that are tied to one side and those that are tied to the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.layouts.carry import Carry, Handler, Known, rank_of
from onnxfold.passes.layouts.cut import UNBOUNDED, Network
from onnxfold.passes.layouts.operators import carry
from onnxfold.passes.layouts.permutation import Permutation, compose, identity, inverse
from onnxfold.passes.layouts.roots import (
    Reading,
    cost_of,
    is_constant,
    only_moves_ones,
    readings,
    root_of,
    transpose_of,
)

Moves = Mapping[ir.Node, Carry]
"""The nodes that change, and what they become."""
_FREE = ("Shape", "Size")
"""They read no elements, whatever the order."""
_A, _B = "a", "b"


def cheapest_moves(seed: ir.Node, handlers: dict[str, Handler]) -> Moves | None:
    """What to change around the Transpose ``seed``; None where nothing gets cheaper."""
    region = _Region(handlers)
    if not region.grow(seed) or not region.moves:
        return None
    before = cost_around(region.moves, {})
    best: tuple[tuple[int, int, int], Moves] | None = None
    for chosen in region.choices():
        after = cost_around(region.moves, chosen)
        if after[0] < before[0] and after[1] <= before[1]:
            rated = (*after, len(chosen)), chosen
            best = rated if best is None or rated[0] < best[0] else best
    return None if best is None else best[1]


def needed_layout(reading: Reading, moves: Moves) -> Permutation:
    """In which order of the root's axes a reader wants it."""
    change = moves.get(reading.node) if reading.node is not None else None
    if change is None or reading.index not in change.inputs:
        return reading.turned
    return compose(reading.turned, change.inputs[reading.index])


def stored_layout(root: ir.Value, moves: Moves) -> Permutation:
    """In which order of its axes its producer leaves ``root``."""
    producer = root.producer()
    if producer is not None and producer in moves:
        return moves[producer].outputs[producer.outputs.index(root)]
    return identity(rank_of(root) or 0)


def is_free(reading: Reading) -> bool:
    """Whether a reader can do with any layout."""
    node = reading.node
    if node is None or node.domain or node.op_type not in _FREE:
        return False
    return node.graph is reading.value.graph and not any(
        each.is_ref() for each in node.attributes.values()
    )


def roots_around(moves: Moves) -> list[ir.Value]:
    """What the nodes read and make, without transposes and constants."""
    found: dict[ir.Value, None] = {}
    for node, change in moves.items():
        for index in change.inputs:
            value = node.inputs[index]
            root = root_of(value) if value is not None else None
            if root is not None and not is_constant(root[0]):
                found[root[0]] = None
        for output in node.outputs:
            found[output] = None
    return list(found)


def cost_around(around: Moves, moves: Moves) -> tuple[int, int]:
    """The cost and the number of the transposes around some nodes, after ``moves``."""
    cost = count = 0
    for root in roots_around(around):
        stored = stored_layout(root, moves)
        wanted = {needed_layout(each, moves) for each in readings(root) if not is_free(each)}
        for needed in wanted - {stored}:
            small = only_moves_ones(root, stored, needed)
            cost += 1 if small else cost_of(root)
            count += not small
    return cost, count


@dataclass(frozen=True)
class _Frame:
    """The two layouts of one root: on side A and on side B."""

    a: Permutation
    b: Permutation

    def side(self, layout: Permutation) -> str | None:
        """The side on which it is in ``layout``."""
        return _A if layout == self.a else _B if layout == self.b else None

    def seen_through(self, turned: Permutation) -> _Frame:
        """The two layouts of ``transpose(root, turned)``."""
        back = inverse(turned)
        return _Frame(compose(back, self.a), compose(back, self.b))


class _Region:
    """What is reached from one Transpose."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers
        self._frames: dict[ir.Value, _Frame] = {}
        self._waiting: deque[ir.Value] = deque()
        self._refused: set[ir.Node] = set()
        self._home: dict[ir.Node, str] = {}
        self.moves: dict[ir.Node, Carry] = {}

    def grow(self, seed: ir.Node) -> bool:
        """Follow all directions from ``seed``; False where it cannot be looked through."""
        found = root_of(seed.outputs[0]) if transpose_of(seed) else None
        if found is None or is_constant(found[0]):
            return False
        root, turned = found
        self._visit(root, _Frame(identity(len(turned)), turned))
        while self._waiting:
            root = self._waiting.popleft()
            frame = self._frames[root]
            producer = root.producer()
            if producer is not None:
                self._propose(producer, frame, producer.outputs.index(root), is_output=True)
            for each in readings(root):
                if each.node is not None and each.node.graph is root.graph and not is_free(each):
                    seen = frame.seen_through(each.turned)
                    self._propose(each.node, seen, each.index, is_output=False)
        return True

    def choices(self) -> Iterator[Moves]:
        """The cheapest choices: the nodes that change."""
        network = Network()
        for root, frame in self._frames.items():
            self._connect(network, root, frame)
        for side in network.cuts(_A, _B):
            yield {
                node: change
                for node, change in self.moves.items()
                if (_A if node in side else _B) != self._home[node]
            }

    def _visit(self, root: ir.Value, frame: _Frame) -> None:
        if frame.a != frame.b and root not in self._frames and not is_constant(root):
            self._frames[root] = frame
            self._waiting.append(root)

    def _propose(self, node: ir.Node, frame: _Frame, index: int, *, is_output: bool) -> None:
        """Give ``node``, which is in one of two layouts, the other one to choose."""
        own = identity(len(frame.a))
        home = frame.side(own)
        if home is None or node in self.moves or node in self._refused:
            return
        other = frame.b if home == _A else frame.a
        change = carry(node, Known(other, index, is_output), self._handlers)
        if change is None:
            self._refused.add(node)
            return
        self.moves[node], self._home[node] = change, home
        for output, layout in zip(node.outputs, change.outputs, strict=True):
            self._visit(output, self._frame(node, identity(len(layout)), layout))
        for at, layout in change.inputs.items():
            value = node.inputs[at]
            found = root_of(value) if value is not None else None
            if found is not None:
                root, turned = found
                self._visit(root, self._frame(node, turned, compose(turned, layout)))

    def _frame(self, node: ir.Node, own: Permutation, other: Permutation) -> _Frame:
        return _Frame(own, other) if self._home[node] == _A else _Frame(other, own)

    def _connect(self, network: Network, root: ir.Value, frame: _Frame) -> None:
        """Charge a Transpose where the producer of ``root`` and a reader are on two sides."""
        producer = root.producer()
        stored = identity(len(frame.a))
        maker = self._vertex(producer, frame, stored, stored_layout(root, self.moves))
        if maker is None:
            return
        cost = 1 if only_moves_ones(root, frame.a, frame.b) else cost_of(root)
        later, earlier = ("later", root), ("earlier", root)
        network.connect(maker, later, cost)
        network.connect(earlier, maker, cost)
        for each in readings(root):
            if is_free(each):
                continue
            moved = needed_layout(each, self.moves)
            reader = self._vertex(each.node, frame, each.turned, moved)
            if reader is not None:
                network.connect(later, reader, UNBOUNDED)
                network.connect(reader, earlier, UNBOUNDED)

    def _vertex(
        self, node: ir.Node | None, frame: _Frame, own: Permutation, other: Permutation
    ) -> ir.Node | str | None:
        """A node that can choose, or the side that it is tied to; None where neither fits."""
        home = frame.side(own)
        if node is None or node not in self.moves:
            return home
        away = frame.side(other)
        fits = home == self._home[node] and away is not None and away != home
        return node if fits else None
