"""Opens DATA for a model; makes inputs up in sizes that the model accepts where there is none."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.errors import ExecutionError
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.generated_feeds import input_ranges
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.specs import input_specs

_SIZES = (64, 512, 1)
"""Of all symbolic dimensions, tried in this order where the usual sizes fail."""


def feeds_for(model: ir.Model, data: object, *, batch: int = 1) -> FeedSource:
    """The feeds of ``data``; generated ones, where it is None, that ``model`` runs on if any do.

    A model that pads or slices may refuse short sequences, and nothing in it says so.

    Args:
        model: The model that came in.
        data: See ``feeds.open_feeds``.
        batch: Samples in a generated feed, where the model takes any number of them.

    Raises:
        UsageError: The data is unusable.
    """
    inputs = input_specs(model)
    ranges = input_ranges(model)
    batches = {
        dim: batch for spec in inputs for dim in (spec.shape or ())[:1] if isinstance(dim, str)
    }
    feeds = open_feeds(data, inputs, ranges=ranges, dims=batches)
    symbols = {dim for spec in inputs for dim in spec.shape or () if isinstance(dim, str)}
    if not feeds.generated or not symbols:
        return feeds
    others = (
        open_feeds(None, inputs, ranges=ranges, dims=dims)
        for dims in ({}, *(dict.fromkeys(symbols, size) for size in _SIZES))
        if dims or batch != 1
    )
    session: Session | None = None
    for each in (feeds, *others):
        try:
            session = session or Session(model, REFERENCE)
            session.run(next(iter(each)))
        except ExecutionError:
            if session is None:
                break
            continue
        return each
    # Whoever runs the model next says what is wrong with it.
    return feeds
