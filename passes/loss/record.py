"""What is written down in a model about the losses that were injected into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from onnxfold.passes.errors import InvalidModelError
from onnxfold.passes.loss.declared_types import declared_types
from onnxfold.passes.serialization import EMBEDDED_LIMIT, model_bytes, tensor_bytes
from onnxfold.passes.walk import all_nodes, use_count

KEY = "onnxfold.loss"
"""Key in the model's metadata: a JSON object."""
TOTAL = "loss"
"""Name of the output that sums all losses up, where it is free."""


@dataclass(frozen=True)
class InjectedLoss:
    """One loss in a model.

    Attributes:
        loss: What was asked for: the loss with its options, as text.
        on: Names of the tensors it is computed from, in the loss's own order.
        output: Name of the output that it is.
        weight: Its share in the total.
        better: ``lower`` or ``higher``; what is better higher counts negative in the total.
        inputs: Name of the input of the model for each input of the loss that the user feeds.
        note: Why the tensors are not the outputs that were asked for; empty where they are.
    """

    loss: str
    on: tuple[str, ...]
    output: str
    weight: float
    better: str
    inputs: Mapping[str, str]
    note: str = ""


@dataclass(frozen=True)
class DataInput:
    """An input that losses added.

    Attributes:
        tensor: Name of the tensor of the model that it goes with.
        kind: What it holds: ``classes``, ``distribution``, ``positive``, ``noise`` or ``numbers``.
        axes: For each dimension the axis of ``tensor`` that it is as long as; None where it
            follows none.
        classes: How many classes there are, for ``classes``; None where it is not known.
    """

    tensor: str
    kind: str
    axes: tuple[int | None, ...]
    classes: int | None = None


@dataclass(frozen=True)
class LossRecord:
    """All that was injected, and what the model was before.

    Attributes:
        inputs: Names of the model's own inputs, in order.
        outputs: Names of its own outputs, in order.
        ir_version: Its IR version.
        opsets: The versions that it imported, by domain.
        metadata: The keys of its metadata.
        types: The types of its intermediate values (``declared_types``).
        unread: Names of initializers that nothing read.
        multiple: The names of all outputs of each node that has several, by that of its first.
        sha256: Of its bytes; empty where it is too large for one file.
        total: Name of the output that sums the losses up.
        losses: What was injected, in order.
        data: The inputs that losses added, by name.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ir_version: int
    opsets: Mapping[str, int]
    metadata: tuple[str, ...]
    types: str
    unread: tuple[str, ...]
    multiple: Mapping[str, tuple[str, ...]]
    sha256: str
    total: str = ""
    losses: tuple[InjectedLoss, ...] = ()
    data: Mapping[str, DataInput] = field(default_factory=dict[str, DataInput])

    @classmethod
    def of(cls, model: ir.Model) -> LossRecord:
        """The record of a model before any loss."""
        return cls(
            inputs=tuple(value.name or "" for value in model.graph.inputs),
            outputs=tuple(value.name or "" for value in model.graph.outputs),
            ir_version=model.ir_version,
            opsets=dict(model.graph.opset_imports),
            metadata=tuple(model.metadata_props),
            types=declared_types(model),
            unread=tuple(value.name or "" for value in unread_initializers(model.graph)),
            multiple={
                node.outputs[0].name or "": tuple(value.name or "" for value in node.outputs)
                for node in all_nodes(model)
                if len(node.outputs) > 1
            },
            sha256=digest(model),
        )

    def to_text(self) -> str:
        """What ``read_record`` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_record(model: ir.Model) -> LossRecord | None:
    """What was injected into ``model``; None where nothing was.

    Raises:
        InvalidModelError: The metadata is not what was written.
    """
    text = model.metadata_props.get(KEY)
    if text is None:
        return None
    try:
        found: Any = json.loads(text)
        return LossRecord(
            inputs=tuple(found["inputs"]),
            outputs=tuple(found["outputs"]),
            ir_version=int(found["ir_version"]),
            opsets={str(domain): int(each) for domain, each in found["opsets"].items()},
            metadata=tuple(found["metadata"]),
            types=str(found["types"]),
            unread=tuple(found["unread"]),
            multiple={name: tuple(each) for name, each in found["multiple"].items()},
            sha256=str(found["sha256"]),
            total=str(found["total"]),
            losses=tuple(map(_loss, found["losses"])),
            data={name: _data(each) for name, each in found["data"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModelError(
            f"the metadata '{KEY}' of model '{model.graph.name}' was damaged: {error!r}"
        ) from error


def digest(model: ir.Model) -> str:
    """The sha256 of the model's bytes; empty where it does not fit into one file."""
    if tensor_bytes(model) > EMBEDDED_LIMIT:
        return ""
    return hashlib.sha256(model_bytes(model)).hexdigest()


def unread_initializers(graph: ir.Graph) -> list[ir.Value]:
    """The initializers of ``graph`` that nothing reads and that are no input or output."""
    return [
        value
        for value in graph.initializers.values()
        if not (use_count(value) or value.is_graph_input() or value.is_graph_output())
    ]


def _loss(found: dict[str, Any]) -> InjectedLoss:
    arguments: dict[str, Any] = {**found}
    arguments["on"] = tuple(found["on"])
    return InjectedLoss(**arguments)


def _data(found: dict[str, Any]) -> DataInput:
    arguments: dict[str, Any] = {**found}
    arguments["axes"] = tuple(found["axes"])
    return DataInput(**arguments)
