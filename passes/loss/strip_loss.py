"""strip-loss: takes out of a model what was injected to train or to judge it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.declared_types import declared_types, restore_types
from onnxfold.passes.loss.record import LossRecord, digest, read_record, unread_initializers
from onnxfold.passes.provenance import PASS_KEY
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.train.manifest import KEY as TRAINING_KEY
from onnxfold.passes.train.manifest import read_manifest
from onnxfold.passes.walk import all_nodes, label, use_count

INJECTING = frozenset(
    {"inject-loss", "add-gradient", "lower-gradient", "add-optimizer", "lower-optimizer"}
)
"""The passes whose nodes are taken out."""

_OWN_KEYS = "onnxfold."


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
        renamed = _renamed_weights(model)
        with rewriter.step("strip-loss"):
            for key in [each for each in model.metadata_props if each.startswith(_OWN_KEYS)]:
                if key not in record.metadata:
                    rewriter.set_metadata(key, None)
            for value in _not_in(record.outputs, graph.outputs):
                rewriter.remove_output(value)
            _erase_injected(model, rewriter)
            for node in all_nodes(model):
                _drop_added_outputs(node, record, rewriter)
            for value, name in renamed:
                rewriter.rename(value, name)
            for value in _not_in(record.inputs, graph.inputs):
                rewriter.remove_input(value)
            for value in _not_in(record.unread, unread_initializers(graph)):
                rewriter.remove_initializer(value)
            used = {node.domain for node in all_nodes(model)}
            for domain in [each for each in graph.opset_imports if each not in record.opsets]:
                if domain not in used:
                    rewriter.remove_opset(graph, domain)
            rewriter.set_ir_version(record.ir_version)
            is_exact = _restore_types(model, record, rewriter)
        if not is_exact:
            rewriter.remark(
                graph[0],
                "without its loss the model is not byte for byte what the loss was injected into: "
                "other passes have rewritten it since",
                "to have that model back, keep a copy of it",
            )


def _drop_added_outputs(node: ir.Node, record: LossRecord, rewriter: Rewriter) -> None:
    """Take away outputs that a gradient asked for, such as the indices of a MaxPool."""
    first = node.outputs[0].name or ""
    known = record.multiple.get(first, (first,))
    added = node.outputs[len(known) :]
    if added and not any(use_count(value) or value.is_graph_output() for value in added):
        rewriter.truncate_outputs(node, len(known))
    for value, name in zip(node.outputs, known, strict=False):
        if not name and value.name and not use_count(value):
            rewriter.leave_out(value)


def _restore_types(model: ir.Model, record: LossRecord, rewriter: Rewriter) -> bool:
    """Take back types that gradients inferred; whether the model is what it was."""
    if not record.sha256 or digest(model) == record.sha256:
        return True
    inferred = declared_types(model)
    restore_types(model, record.types, rewriter)
    if digest(model) == record.sha256:
        return True
    # Other passes gave values other types for good reason.
    restore_types(model, inferred, rewriter)
    return False


def _renamed_weights(model: ir.Model) -> list[tuple[ir.Value, str]]:
    """The weights that an optimizer made inputs, with the names that they had."""
    if TRAINING_KEY not in model.metadata_props:
        return []
    weights = model.graph.initializers
    states = [each for each in read_manifest(model).states if not each.slot]
    return [(weights[each.input], each.tensor) for each in states if each.input in weights]


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
    """Erase injected nodes that nothing needs."""
    for node in reversed(tuple(model.graph)):
        needed = any(use_count(value) or value.is_graph_output() for value in node.outputs)
        if _is_injected(node) and not needed:
            rewriter.erase(node)
