"""Names for new nodes and values: unique in the whole model, the same in every run."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxfold.passes.walk import all_graphs


class Names:
    """The names of a model that are taken.

    Collected once; a name that is freed later is not given out again.
    """

    def __init__(self, model: ir.Model) -> None:
        self._taken = set(_names_of(model))
        self._next_suffix: dict[str, int] = {}

    def unique(self, base: str) -> str:
        """A name that no node or value has: ``base``, or ``base_1``, ``base_2`` ...; now taken."""
        name = base
        while name in self._taken:
            self._next_suffix[base] = self._next_suffix.get(base, 0) + 1
            name = f"{base}_{self._next_suffix[base]}"
        self._taken.add(name)
        return name


def _names_of(model: ir.Model) -> Iterator[str]:
    for graph in all_graphs(model):
        yield from (value.name or "" for value in graph.inputs)
        yield from graph.initializers
        for node in graph:
            yield node.name or ""
            yield from (output.name or "" for output in node.outputs)
