"""Measures how large the channels of what linear operators read become."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import InvalidModelError
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.quantize.channel_maxima import ChannelMaxima
from onnxfold.runtime.calibrate.tapping import chosen_nodes, tapped
from onnxfold.runtime.progress import Progress


def measure_channel_maxima(
    model: ir.Model,
    names: Collection[str] | None,
    feeds: Iterable[Mapping[str, Array]],
    *,
    progress: Progress | None = None,
) -> ChannelMaxima:
    """max|x| of each input channel of linear operators, for ``smooth-quant``.

    Args:
        model: The float model that ``smooth-quant`` is given; not changed.
        names: Nodes of its main graph with constant weights; others are left out. None means all.
        feeds: One array per input each. Read once.
        progress: Hears one step per feed, in the stage the caller opened.

    Raises:
        UsageError: There is no data, or ``model`` has no such node.
        InvalidModelError: A tensor became NaN or infinite.
        ExecutionError: ONNX Runtime failed.
    """
    matched = {name: LinearOp.match(node) for name, node in chosen_nodes(model, names).items()}
    layers = {name: linear for name, linear in matched.items() if linear is not None}
    keys = {(each.data.name or "", each.data_channel_axis): each for each in layers.values()}
    found = {key: np.zeros(each.in_channels) for key, each in keys.items()}
    if not found:
        return ChannelMaxima({})
    tensors = list(dict.fromkeys(name for name, _ in found))
    for sample, values in enumerate(tapped(model, tensors, feeds, progress)):
        for (name, axis), largest in found.items():
            np.maximum(largest, _largest(values[name], axis), out=largest)
            if not np.isfinite(largest).all():
                raise InvalidModelError(
                    f"tensor '{name}' has NaN or infinite values on calibration sample {sample}; "
                    "check that sample, or leave it out"
                )
    return ChannelMaxima(
        {
            name: found[each.data.name or "", each.data_channel_axis].tolist()
            for name, each in layers.items()
        }
    )


def _largest(values: Array, axis: int) -> Array:
    others = tuple(each for each in range(values.ndim) if each != axis % values.ndim)
    largest: Array = np.abs(values).max(axis=others, initial=0.0)
    return largest
