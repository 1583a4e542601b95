"""strip-loss: takes out of a model what was injected to train or to judge it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.record import KEY, LossRecord, digest, read_record
from onnxfold.passes.provenance import PASS_KEY
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_nodes, label, use_count

INJECTING = frozenset(
    {"inject-loss", "add-gradient", "lower-gradient", "add-optimizer", "lower-optimizer"}
)
"""The passes whose nodes are taken out."""


@dataclass(frozen=True)
class StripLoss(Pass):
    """Take out everything that inject-loss and the passes behind it added.

    Inputs and outputs become what they were before the first loss, and nodes that losses,
    gradients and optimizers added go, with their constants. A model that no other pass has
    changed since is byte for byte what it was; of any other a remark says so. A model without
    a loss is left alone.
    """

    name: ClassVar[str] = "strip-loss"
    contract: ClassVar[Contract] = Contract.EXACT

    @property
    def restores_interface(self) -> bool:
        """It does."""
        return True

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Restore the interface, then erase what nothing needs any more.

        Raises:
            UsageError: The model has not the inputs and outputs any more that it had before the
                loss, or a trained tensor is an input without a value.
        """
        record = read_record(model)
        if record is None:
            return
        _check(model, record)
        graph = model.graph
        with rewriter.step("strip-loss"):
            rewriter.set_metadata(KEY, None)
            for value in _not_in(record.outputs, graph.outputs):
                rewriter.remove_output(value)
            _erase_injected(model, rewriter)
            for value in _not_in(record.inputs, graph.inputs):
                rewriter.remove_input(value)
            if not record.opset and not _reads_opset(model):
                rewriter.remove_opset(model.graph, "")
            rewriter.set_ir_version(record.ir_version)
        if record.sha256 and digest(model) != record.sha256:
            first = next(iter(model.graph))
            rewriter.remark(
                first,
                "without its loss the model is not byte for byte what the loss was injected into: "
                "other passes have rewritten it since",
                "to have that model back, keep a copy of it",
            )


def _not_in(names: tuple[str, ...], values: Iterable[ir.Value]) -> list[ir.Value]:
    return [value for value in values if value.name not in names]


def _check(model: ir.Model, record: LossRecord) -> None:
    graph = model.graph
    found = {value.name for value in graph.inputs}, {value.name for value in graph.outputs}
    for kind, wanted, names in zip(
        ("input", "output"), (record.inputs, record.outputs), found, strict=True
    ):
        for name in wanted:
            if name not in names:
                raise UsageError(
                    f"strip-loss: the {kind} '{name}' that the model had before the loss is gone; "
                    "strip the model that inject-loss wrote"
                )
    for value in graph.inputs:
        if value.name in record.inputs or value.name in graph.initializers:
            continue
        reader = next((use.node for use in value.uses() if not _is_injected(use.node)), None)
        if reader is not None:
            raise UsageError(
                f"strip-loss: {label(reader)} reads '{value.name}', which is an input without a "
                "value since the loss was injected; give it its value as an initializer"
            )


def _is_injected(node: ir.Node) -> bool:
    return bool(INJECTING.intersection(node.metadata_props.get(PASS_KEY, "").split(",")))


def _erase_injected(model: ir.Model, rewriter: Rewriter) -> None:
    """Erase injected nodes that nothing needs, with constants that only they read."""
    graph = model.graph
    for node in reversed(tuple(graph)):
        if not _is_injected(node):
            continue
        if any(use_count(value) or value.is_graph_output() for value in node.outputs):
            continue
        read = dict.fromkeys(value for value in node.inputs if value is not None)
        rewriter.erase(node)
        for value in read:
            if value.is_initializer() and not use_count(value) and not _is_edge(value):
                rewriter.remove_initializer(value)


def _is_edge(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_graph_output()


def _reads_opset(model: ir.Model) -> bool:
    return any(not node.domain for node in all_nodes(model))
