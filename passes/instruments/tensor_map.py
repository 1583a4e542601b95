"""Follows the tensors of the original model through all rewrites."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.listener import RewriteListener
from onnxfold.passes.pipeline import BaseInstrument
from onnxfold.passes.walk import all_graphs


class TensorMap(BaseInstrument, RewriteListener):
    """Maps the name of a tensor of the original model to the name it has now."""

    def __init__(self) -> None:
        self._model: ir.Model | None = None
        self._original: dict[str, ir.Value] = {}
        self._replaced: dict[ir.Value, ir.Value] = {}

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Note the tensors of a model that has not been seen yet."""
        if self._model is None:
            self._model, self._original = model, _values(model)

    def listeners(self, pass_: Pass) -> Sequence[RewriteListener]:
        """Itself: it listens to every pass."""
        return (self,)

    def value_replaced(self, old: ir.Value, new: ir.Value) -> None:
        """Follow ``old`` to ``new``."""
        self._replaced[old] = new

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """Where the pass put another model in place, follow the tensors by name."""
        if model is self._model:
            return
        present = _values(model)
        names = self.names()
        self._original = {old: present[new] for old, new in names.items() if new in present}
        self._model = model
        self._replaced.clear()

    def current_name(self, name: str) -> str | None:
        """The name under which original tensor ``name`` is now computed; None if it is not."""
        value = self._original.get(name)
        return None if value is None else self._resolve(value)

    def names(self) -> dict[str, str]:
        """Original name -> current name, for every original tensor that is still computed."""
        resolved = {name: self._resolve(value) for name, value in self._original.items()}
        return {name: current for name, current in resolved.items() if current is not None}

    def _resolve(self, value: ir.Value) -> str | None:
        chain: dict[ir.Value, None] = {}
        # A value that was replaced only where it was read is still computed itself.
        while value in self._replaced and value not in chain and not _is_computed(value):
            chain[value] = None
            value = self._replaced[value]
        for each in chain:
            self._replaced[each] = value
        return value.name if _is_computed(value) else None


def _is_computed(value: ir.Value) -> bool:
    return value.graph is not None


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """All named values; where graphs share a name, the outermost wins."""
    found: dict[str, ir.Value] = {}
    for graph in all_graphs(model):
        own = [*graph.inputs, *graph.initializers.values()]
        own += [output for node in graph for output in node.outputs]
        for value in own:
            if value.name:
                found.setdefault(value.name, value)
    return found
