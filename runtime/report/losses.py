"""What was injected into a model: losses, and the inputs and outputs that came with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from onnxfold.passes.loss.record import LossRecord, read_record
from onnxfold.passes.train.manifest import KEY as TRAINING_KEY
from onnxfold.runtime.specs import TensorSpec, specs_of


def loss_facts(model: ir.Model, original: ir.Model) -> dict[str, Any]:
    """The section ``loss`` of a report; empty where the model has no loss.

    Args:
        model: The model with losses.
        original: The model as it came in.
    """
    record = read_record(model)
    if record is None:
        return {}
    before, now = (each.graph.opset_imports.get("", 0) for each in (original, model))
    return {
        "total": record.total,
        "losses": [
            {
                "loss": each.loss,
                "on": list(each.on),
                "note": each.note,
                "output": each.output,
                "weight": each.weight,
                "better": each.better,
                "inputs": dict(each.inputs),
            }
            for each in record.losses
        ],
        "inputs": [_fact(spec, record) for spec in _added(model, record, "inputs")],
        "outputs": [spec.to_json() for spec in _added(model, record, "outputs")],
        "training": TRAINING_KEY in model.metadata_props,
        "opset": {"original": before, "result": now},
    }


def loss_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The section in words, a line at a time."""
    for each in facts["losses"]:
        on = ", ".join(f"'{name}'" for name in each["on"])
        share = f", {each['weight']:g} of it" if each["weight"] != 1 else ""
        sign = ", better higher: it counts negative" if each["better"] == "higher" else ""
        note = f" ({each['note']})" if each["note"] else ""
        yield f"{each['loss']} on {on}{note} -> '{each['output']}'{share}{sign}"
    opset = facts["opset"]
    if opset["original"] != opset["result"]:
        yield f"opset {opset['original']} -> {opset['result']}"


def _added(model: ir.Model, record: LossRecord, kind: str) -> list[TensorSpec]:
    known = record.inputs if kind == "inputs" else record.outputs
    values = model.graph.inputs if kind == "inputs" else model.graph.outputs
    return [spec for spec in specs_of(values) if spec.name not in known]


def _fact(spec: TensorSpec, record: LossRecord) -> dict[str, Any]:
    data = record.data.get(spec.name)
    holds = "" if data is None else data.kind
    if data is not None and data.kind == "classes" and data.classes is not None:
        holds = f"classes 0 to {data.classes - 1}"
    return {**spec.to_json(), "holds": holds}
