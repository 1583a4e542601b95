"""Finds what is wrong with the labels in the data: none, or class numbers that are no classes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.record import LossRecord, read_record
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.specs import Feed, is_integer
from onnxfold.runtime.verify.complete import MadeUpLabels, complete_feed, reduced


def check_labels(model: ir.Model, feeds: FeedSource) -> None:
    """Refuse data without labels, or with one that is no class and not left out by the loss.

    Args:
        model: A model with losses; others are not looked at.
        feeds: Feeds of the model as it was, with labels beside them.

    Raises:
        UsageError: Labels are missing, or one is no class and makes the loss NaN.
        ExecutionError: The model does not run.
    """
    record = read_record(model)
    if record is None:
        return
    if feeds.generated:
        return
    needed = [name for name, each in record.data.items() if each.kind != "noise"]
    counts = {name: each.classes for name, each in record.data.items() if each.classes is not None}
    for number, (feed, labels) in enumerate(feeds.with_labels()):
        missing = next((name for name in needed if name not in labels), None)
        if missing is not None:
            found = ", ".join(f"'{name}'" for name in labels) or "none"
            raise UsageError(
                f"{feeds.description}, sample {number}: the loss wants an array '{missing}' of "
                f"right answers beside the inputs, and there is {found}; add it, or name it with "
                "--labels"
            )
        for name, count in counts.items():
            outside = first_outside(labels.get(name), count)
            if outside is not None and _is_nan(model, record, feed, labels):
                place = f"{feeds.description}, sample {number}"
                raise no_class(place, name, outside, count)


def no_class(place: str, name: str, label: int, count: int) -> UsageError:
    """The error that ``label`` in the array ``name`` of a sample is none of ``count`` classes."""
    return UsageError(
        f"{place}: '{name}' holds {label}, and the classes are 0 to {count - 1}: correct the "
        "labels, or name the one to leave out with ignore-index where the loss has it"
    )


def first_outside(labels: Array | None, count: int) -> int | None:
    """The first label that is none of ``count`` classes."""
    if labels is None or not is_integer(np.asarray(labels).dtype):
        return None
    values = np.asarray(labels).ravel()
    found = values[(values < 0) | (values >= count)]
    return int(found[0]) if found.size else None


def _is_nan(model: ir.Model, record: LossRecord, feed: Feed, labels: Feed) -> bool:
    """Whether the sum of the losses of one feed is NaN."""
    session = Session(reduced(model, [record.total], ()), REFERENCE)
    full = complete_feed(feed, labels, session.inputs, MadeUpLabels(model))
    return bool(np.isnan(session.run(full)[record.total]).any())
