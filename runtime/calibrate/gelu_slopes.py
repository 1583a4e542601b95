"""Measures which logistic function each Gelu of a model is nearest to, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.gelu import Gelu
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.gelu_slopes import GeluSlopes
from onnxfold.passes.quantize.quick_gelu import QuickGelu
from onnxfold.runtime.calibrate.tapping import tapped
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import REFERENCE, Session

LEAST_DB = 30.0
"""SQNR of the outputs with all that is replaced: what a budget asks that says nothing else. It
costs 0.6 of the 22 dB that 8 bits leave of a transformer."""
_JUDGED = 8
"""Feeds on which outputs are compared."""
_SLOPES = np.linspace(1.55, 1.85, 31)
_NUMBERS = 4096
"""Of each Gelu and feed."""


def measure_gelu_slopes(
    model: ir.Model, feeds: FeedSource, *, progress: Progress | None = None
) -> GeluSlopes:
    """The slope a of x * sigmoid(a * x), of least square error, of each Gelu that it may replace.

    Those go first that make least noise at the outputs, each by itself, as long as the noise of all
    stays ``LEAST_DB`` below the outputs.

    Args:
        model: The float model that ``quick-gelu`` is given; not changed.
        feeds: The data.
        progress: Hears one step per feed, in the stage the caller opened.

    Raises:
        UsageError: There is no data.
        ExecutionError: ONNX Runtime failed.
    """
    slopes = _nearest(model, feeds, progress)
    few = feeds.first(_JUDGED)
    expected = _outputs(model, few) if slopes else ()
    noise = {name: _noise(model, name, slope, few, expected) for name, slope in slopes.items()}
    kept, left = dict[str, tuple[float]](), 10.0 ** (-LEAST_DB / 10.0)
    for name in sorted(noise, key=noise.__getitem__):
        left -= noise[name]
        # Not ">= 0" the other way round: NaN ends it, too.
        if not left >= 0.0:
            break
        kept[name] = (slopes[name],)
    return GeluSlopes(kept)


def _nearest(model: ir.Model, feeds: FeedSource, progress: Progress | None) -> dict[str, float]:
    matched = [found for found in map(Gelu.match, model.graph) if found is not None]
    names = {node_name(each.last): each.data.name or "" for each in matched}
    errors = {name: np.zeros(len(_SLOPES)) for name in names}
    if not names:
        return {}
    for values in tapped(model, list(dict.fromkeys(names.values())), feeds, progress):
        for name, tensor in names.items():
            data = _some(values[tensor])
            exact = _gelu(data)
            for at, slope in enumerate(_SLOPES):
                errors[name][at] += np.sum((data * _sigmoid(slope * data) - exact) ** 2)
    return {name: float(_SLOPES[np.argmin(each)]) for name, each in errors.items()}


def _some(values: Array) -> Array:
    """Numbers of all channels: an odd step meets each of them, if their count is a power of two."""
    step = max(1, values.size // _NUMBERS) | 1
    return values.reshape(-1)[::step].astype(np.float64)


def _gelu(data: Array) -> Array:
    erf = [math.erf(each / math.sqrt(2.0)) for each in data.tolist()]
    return 0.5 * data * (1.0 + np.asarray(erf))


def _sigmoid(data: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * data))


def _noise(
    model: ir.Model,
    name: str,
    slope: float,
    feeds: FeedSource,
    expected: Sequence[Mapping[str, Array]],
) -> float:
    """Of one Gelu replaced, as a share of the power of the output that it harms most."""
    quick = Pipeline((QuickGelu(GeluSlopes({name: (slope,)})),)).run(model.clone()).model
    pairs = list(zip(expected, _outputs(quick, feeds), strict=True))
    shares = [0.0]
    for output in expected[0]:
        power = sum(float(np.sum(old[output] ** 2)) for old, _ in pairs)
        lost = sum(float(np.sum((new[output] - old[output]) ** 2)) for old, new in pairs)
        shares.append(lost / power if power else float(lost > 0.0))
    return float(np.max(shares))


def _outputs(model: ir.Model, feeds: FeedSource) -> tuple[Mapping[str, Array], ...]:
    """The real outputs for each feed, in float64."""
    session = Session(model, REFERENCE)
    found = (session.run(feed) for feed in feeds)
    return tuple(
        {
            name: v.astype(np.float64)
            for name, v in each.items()
            if np.issubdtype(v.dtype, np.floating)
        }
        for each in found
    )
