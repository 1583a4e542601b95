"""Runs a model on a set of feeds from wave to wave of layers, while what lies ahead may change.

Layers that do not depend on each other make one wave. The values that are still needed behind a
wave are kept in files, so the cost is linear in the model's depth and memory holds one feed.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.quantize.linear_outputs import LinearOutput
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.verify.cut import values_read

MEANING = replace(REFERENCE, name="sweep", threads=0, spinning=False)
"""What a quantized model means: ONNX Runtime's optimizer is known to misread some of them."""


class Sweep:
    """A model and the values of all feeds as far as the sweep has come.

    Between two waves the caller may give layers of the last one other weights, or shift their
    outputs; what they compute then is what later waves see.

    Attributes:
        waves: Layers that do not depend on each other together, in the order of dependence.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Collection[ir.Node],
        feeds: Iterable[Mapping[str, Array]],
        folder: Path,
    ) -> None:
        """Begin in front of the first wave.

        Args:
            model: What is run; types of its intermediate values are not needed.
            layers: Linear operators of the main graph.
            feeds: One array per input each. Read once, by the first ``run``.
            folder: An empty folder of the caller's, for values.
        """
        self._model, self._graph = model, model.graph
        self._feeds, self._folder = feeds, folder
        self._levels = _levels(self._graph, layers)
        self._last_read = _last_read(self._graph, self._levels)
        self._by_level: dict[int, list[ir.Value]] = {}
        for value, level in self._levels.items():
            self._by_level.setdefault(level, []).append(value)
        self.waves = self._in_waves(layers)
        self._done = 0
        self._borders = [each for each in self._graph.inputs if each in self._levels]

    def run(self, targets: Sequence[ir.Value]) -> Iterator[dict[str, Array]]:
        """Run up to the next wave on each feed, which it becomes; to be read to its end.

        Args:
            targets: Values to compute: behind the waves before, and at most behind this one.

        Yields:
            The targets of one feed, by name. What is behind this wave is computed again by the
            next ``run``, with the layers as they are then.
        """
        number = self._done
        kept = self._still_needed(number)
        files = self._folder / str(number)
        files.mkdir()
        names = [each.name or "" for each in kept]
        known = {each.name for each in self._borders}
        wanted = dict.fromkeys(each for each in (*targets, *kept) if each.name not in known)
        session: Session | None = None
        for index, values in enumerate(self._values(number)):
            if session is None and wanted:
                session = Session(self._segment(tuple(wanted), values), MEANING)
            found = dict(values)
            if session is not None:
                found.update(session.run({each.name: values[each.name] for each in session.inputs}))
            arrays = [np.asarray(found[name]) for name in names]
            # Protocol 5 writes arrays as they lie in memory, of every element type there is.
            (files / str(index)).write_bytes(pickle.dumps(arrays, protocol=5))
            yield {each.name or "": found[each.name or ""] for each in targets}
        self._borders, self._done = kept, number + 1

    def _in_waves(self, layers: Iterable[ir.Node]) -> list[list[ir.Node]]:
        waves: dict[int, list[ir.Node]] = {}
        for node in layers:
            waves.setdefault(self._levels.get(node.outputs[0], 1), []).append(node)
        return [waves[level] for level in sorted(waves)]

    def _values(self, number: int) -> Iterator[Mapping[str, Array]]:
        """What is known of each feed: its inputs, or the values kept, whose files are removed."""
        if number == 0:
            yield from self._feeds
            return
        names = [each.name or "" for each in self._borders]
        folder = self._folder / str(number - 1)
        for index in range(len(list(folder.iterdir()))):
            path = folder / str(index)
            arrays: list[Array] = pickle.loads(path.read_bytes())
            path.unlink()
            yield dict(zip(names, arrays, strict=True))

    def _still_needed(self, number: int) -> list[ir.Value]:
        """Values in front of a wave that it or later ones read."""
        if number == len(self.waves) - 1:
            return []
        if number:
            self._follow_shifts(self.waves[number - 1])
        candidates = dict.fromkeys([*self._borders, *self._by_level.get(number, ())])
        return [each for each in candidates if self._last_read.get(each, 0) > number]

    def _follow_shifts(self, wave: Iterable[ir.Node]) -> None:
        """Let what was put behind a layer meanwhile stand for its output."""
        for node in wave:
            old, output = node.outputs[0], LinearOutput.match(node)
            if output is None or output.value in self._levels or old not in self._levels:
                continue
            level = self._levels[old]
            self._levels[output.value] = level
            self._by_level.setdefault(level, []).append(output.value)
            self._last_read[output.value] = self._last_read.get(old, 0)
            self._last_read[old] = level

    def _segment(self, targets: Sequence[ir.Value], values: Mapping[str, Array]) -> ir.Model:
        """What lies between the borders and ``targets``, alone."""
        borders = [each for each in self._borders if each.name in values]
        nodes, initializers = _between(self._graph, borders, targets)
        view = ir.GraphView(
            borders,
            targets,
            nodes=nodes,
            initializers=initializers,
            opset_imports=dict(self._graph.opset_imports),
            name="segment",
        )
        graph = view.clone()
        for value in graph.inputs:
            dtype = ir.DataType.from_numpy(values[value.name or ""].dtype)
            value.type, value.shape = ir.TensorType(dtype), None
        for value in [each for each in graph.inputs if not each.uses()]:
            graph.inputs.remove(value)
        functions = [each.clone() for each in self._model.functions.values()]
        return ir.Model(graph, ir_version=self._model.ir_version, functions=functions)


def _levels(graph: ir.Graph, layers: Collection[ir.Node]) -> dict[ir.Value, int]:
    """How many of ``layers`` lie on the longest way to each value that data reaches."""
    chosen = frozenset(layers)
    levels = dict.fromkeys((each for each in graph.inputs if not each.is_initializer()), 0)
    for node in graph:
        reached = [levels[value] for value in values_read(node, graph) if value in levels]
        if reached:
            level = max(reached) + (node in chosen)
            levels.update(dict.fromkeys(node.outputs, level))
    return levels


def _last_read(graph: ir.Graph, levels: Mapping[ir.Value, int]) -> dict[ir.Value, int]:
    """The highest level of the nodes that read each value."""
    last: dict[ir.Value, int] = {}
    for node in graph:
        level = max((levels.get(each, 0) for each in node.outputs), default=0)
        for value in values_read(node, graph):
            if value in levels:
                last[value] = max(last.get(value, 0), level)
    return last


def _between(
    graph: ir.Graph, borders: Iterable[ir.Value], targets: Iterable[ir.Value]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that compute ``targets`` from ``borders``, in order, and the initializers read."""
    given = set(borders)
    nodes: dict[ir.Node, None] = {}
    initializers: dict[ir.Value, None] = {}
    waiting = [(value, False) for value in targets]
    while waiting:
        value, is_ready = waiting.pop()
        node = value.producer()
        if value in given or node in nodes:
            continue
        if node is None:
            initializers[value] = None
        elif is_ready:
            nodes[node] = None
        else:
            waiting.append((value, True))
            waiting.extend((each, False) for each in values_read(node, graph))
    return list(nodes), list(initializers)
