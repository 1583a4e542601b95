"""strip-training: takes optimizer and gradients out again; the weights keep what they are now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.train.manifest import KEY, Manifest, read_manifest
from onnxfold.passes.walk import use_count


@dataclass(frozen=True)
class StripTraining(Pass):
    """Take out what add-optimizer added, and the gradients that it read.

    Inputs ``state_<tensor>`` become the initializers they were, with their default values, under
    the names they had. The loss stays: strip-loss takes that out.
    """

    name: ClassVar[str] = "strip-training"
    contract: ClassVar[Contract] = Contract.EXACT

    @property
    def restores_interface(self) -> bool:
        """It takes away inputs and outputs that add-gradient and add-optimizer added."""
        return True

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Take away outputs first, then what only they needed, then inputs.

        Raises:
            UsageError: The model is no training graph.
        """
        manifest = read_manifest(model)
        graph = model.graph
        added = {state.output for state in manifest.all_states} | set(manifest.gradients)
        outputs = [value for value in graph.outputs if value.name in added]
        inputs = {value.name: value for value in graph.inputs}
        with rewriter.step("strip-training"):
            rewriter.set_metadata(KEY, None)
            for value in outputs:
                rewriter.remove_output(value)
            _erase_unused((value.producer() for value in outputs), rewriter)
            for name in _input_names(manifest):
                _settle(inputs[name], rewriter)
            for state in manifest.states:
                if not state.slot and state.input != state.tensor:
                    rewriter.rename(inputs[state.input], state.tensor)


def _input_names(manifest: Manifest) -> Iterable[str]:
    for state in manifest.all_states:
        # A tensor that was an input before stays one.
        if state.input != state.tensor:
            yield state.input
    yield manifest.learning_rate


def _settle(value: ir.Value, rewriter: Rewriter) -> None:
    rewriter.remove_input(value)
    if not use_count(value) and not value.is_graph_output():
        rewriter.remove_initializer(value)


def _erase_unused(nodes: Iterable[ir.Node | None], rewriter: Rewriter) -> None:
    """Erase nodes that nothing reads, with the nodes and constants that only they read."""
    pending = [node for node in nodes if node is not None]
    while pending:
        node = pending.pop()
        if node.graph is None or any(map(_is_used, node.outputs)):
            continue
        read = dict.fromkeys(value for value in node.inputs if value is not None)
        rewriter.erase(node)
        for value in read:
            producer = value.producer()
            if producer is not None:
                pending.append(producer)
            elif value.is_initializer() and not _is_used(value) and not value.is_graph_input():
                rewriter.remove_initializer(value)


def _is_used(value: ir.Value) -> bool:
    return use_count(value) > 0 or value.is_graph_output()
