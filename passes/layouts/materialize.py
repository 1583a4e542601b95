"""Carries out a choice of layouts: changes the nodes, puts transposes where they are needed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.layouts.carry import Carry
from onnxfold.passes.layouts.permutation import Permutation, compose, identity, inverse
from onnxfold.passes.layouts.region import (
    Moves,
    is_free,
    needed_layout,
    roots_around,
    stored_layout,
)
from onnxfold.passes.layouts.roots import Reading, readings, root_of, transpose_of
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count


def materialize(moves: Moves, rewriter: Rewriter) -> None:
    """Change the nodes in ``moves``, inside a step; they keep their names, their results do not."""
    _Mover(moves, rewriter).run()


class _Mover:
    """What there was before anything changed, and which transposes were made since."""

    def __init__(self, moves: Moves, rewriter: Rewriter) -> None:
        self._moves = moves
        self._rewriter = rewriter
        graph = next(iter(moves)).graph
        assert graph is not None
        self._nodes = [node for node in graph if node in moves]
        self._transposes = [node for node in graph if transpose_of(node)]
        self._readings = {root: list(readings(root)) for root in roots_around(moves)}
        self._stored = {root: stored_layout(root, moves) for root in self._readings}
        self._declared: dict[ir.Value, ir.Shape | None] = {}
        self._made: dict[tuple[ir.Value, Permutation], ir.Value] = {}

    def run(self) -> None:
        """All of it."""
        wanted = {node: self._wanted(node, self._moves[node]) for node in self._nodes}
        for node in self._nodes:
            self._change(node, self._moves[node], wanted[node])
        for node in self._nodes:
            for root in node.outputs:
                self._redirect(root)
        for node in reversed(self._transposes):
            output = node.outputs[0]
            if not use_count(output) and not output.is_graph_output():
                self._rewriter.erase(node)

    def _wanted(self, node: ir.Node, change: Carry) -> dict[int, tuple[ir.Value, Permutation]]:
        """Which roots a node reads, and in which layouts it wants them."""
        wanted: dict[int, tuple[ir.Value, Permutation]] = {}
        for index in change.inputs:
            value = node.inputs[index]
            found = root_of(value) if value is not None else None
            if value is not None and found is not None:
                reading = Reading(value, found[1], node, index)
                wanted[index] = found[0], needed_layout(reading, self._moves)
        return wanted

    def _change(
        self, node: ir.Node, change: Carry, wanted: dict[int, tuple[ir.Value, Permutation]]
    ) -> None:
        for index, (root, needed) in wanted.items():
            self._rewriter.set_input(node, index, self._provide(root, needed))
        for index, array in change.constants.items():
            self._set_constant(node, index, array)
        for name, value in change.attributes.items():
            self._rewriter.set_attribute(node, name, value)
        for holder in change.elsewhere:
            self._set_constant(holder.node, holder.index, holder.array)
        for root, layout in zip(node.outputs, change.outputs, strict=True):
            if layout == identity(len(layout)):
                continue
            self._declared[root] = root.shape
            self._rewriter.declare(root, root.type, _permuted(root.shape, layout))
            if root.name and not root.is_graph_output():
                self._rewriter.rename(root, f"{root.name.removesuffix('_moved')}_moved")

    def _set_constant(self, node: ir.Node, index: int, array: Array) -> None:
        old = node.inputs[index] if index < len(node.inputs) else None
        name = old.name if old is not None and old.name else f"{node.name}_{index}"
        self._rewriter.set_input(node, index, self._rewriter.constant(node, array, name=name))

    def _redirect(self, root: ir.Value) -> None:
        """Let what stays as it is, and reads ``root`` or a transpose of it, read what it needs."""
        if self._stored[root] == identity(len(self._stored[root])):
            return
        staying = [each for each in self._readings[root] if each.node not in self._moves]
        values = {each.value: each.turned for each in staying if not is_free(each)}
        # The root first: what read transposes of it may come to read the root.
        for value, turned in sorted(values.items(), key=lambda each: each[0] is not root):
            provided, permuted = self._provide(root, turned), root.shape
            if value is root and root.is_graph_output():
                # What takes the output over takes over the shape that it has.
                self._rewriter.declare(root, root.type, self._declared[root])
            self._rewriter.replace_value(value, provided, keep=self._keep(value))
            if value is root:
                self._rewriter.declare(root, root.type, permuted)
        for each in staying:
            if each.node is not None and is_free(each):
                self._redirect_size(each.node, root, each.turned)

    def _keep(self, value: ir.Value) -> list[ir.Node]:
        """The readers that see to themselves."""
        readers = [use.node for use in value.uses()]
        return [node for node in readers if node in self._moves or transpose_of(node)]

    def _redirect_size(self, node: ir.Node, root: ir.Value, turned: Permutation) -> None:
        """Sizes are picked out of the shape of what there is."""
        stored = self._stored[root]
        if node.op_type == "Size" or turned == stored:
            self._rewriter.set_input(node, 0, root)
            return
        picks = np.array(compose(inverse(stored), turned), dtype=np.int64)
        pick_sizes(self._rewriter, node, root, picks)

    def _provide(self, root: ir.Value, needed: Permutation) -> ir.Value:
        """``transpose(root, needed)``, made where there is none."""
        if root not in self._stored:
            self._stored[root] = identity(len(needed))
        if needed == self._stored[root]:
            return root
        if (root, needed) not in self._made:
            self._made[root, needed] = self._transposed(root, needed)
        return self._made[root, needed]

    def _transposed(self, root: ir.Value, needed: Permutation) -> ir.Value:
        producer, graph, stored = root.producer(), root.graph, self._stored[root]
        assert graph is not None
        own = compose(inverse(stored), needed)
        turned = self._rewriter.insert(
            graph[0] if producer is None else producer,
            "Transpose",
            [root],
            name=f"{root.name}_transposed",
            attributes={"perm": own},
            dtype=root.dtype,
            shape=_permuted(root.shape, own),
            after=producer is not None,
        )
        if producer in self._moves:
            return turned
        # What reads the same transpose of a tensor that stays reads this one from now on.
        for each in {each.value: each for each in self._readings.get(root, ())}.values():
            if each.turned == needed:
                self._rewriter.replace_value(each.value, turned, keep=self._keep(each.value))
        return turned


def pick_sizes(rewriter: Rewriter, node: ir.Node, source: ir.Value, axes: Array) -> None:
    """Replace a Shape node by the sizes of ``axes`` of ``source``, of which it takes its part."""
    bounds = [node.attributes.get(name) for name in ("start", "end")]
    start, end = (None if bound is None else bound.as_int() for bound in bounds)
    name = node.outputs[0].name or "shape"
    sizes = rewriter.insert(
        node, "Shape", [source], name=name, dtype=ir.DataType.INT64, shape=[len(axes)]
    )
    picked = axes[start:end]
    chosen = rewriter.constant(node, picked, name=f"{name}_axes")
    gathered = rewriter.insert(
        node, "Gather", [sizes, chosen], name=name, dtype=ir.DataType.INT64, shape=[len(picked)]
    )
    rewriter.replace_node(node, [gathered])


def _permuted(shape: ir.Shape | None, layout: Permutation) -> ir.Shape | None:
    return None if shape is None else ir.Shape(shape[axis] for axis in layout)
