"""Measures by how much a quantized model's linear operators are off on average, layer by layer.

Each layer is measured behind layers that are corrected already, fed with what the quantized model
feeds it. Every operator runs twice on every feed, however deep the model is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.correct_bias import shift_output
from onnxfold.passes.quantize.linear_outputs import LinearOutput
from onnxfold.passes.quantize.output_errors import OutputErrors
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.calibrate.counterparts import LayerPair, paired_layers, typed
from onnxfold.runtime.calibrate.sweep import MEANING, Sweep
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import Session
from onnxfold.runtime.verify.cut import keep_outputs


def measure_output_errors(
    original: ir.Model,
    quantized: ir.Model,
    feeds: Iterable[Mapping[str, Array]],
    *,
    progress: Progress | None = None,
    means: MutableMapping[str, Array] | None = None,
) -> OutputErrors:
    """Mean error of each linear operator of ``quantized``, for ``correct-bias``.

    Sequential empirical bias correction (Nagel et al., "Data-Free Quantization through Weight
    Equalization and Bias Correction", 2019, appendix D): E[original] - E[quantized] over samples
    and positions, of a model whose earlier layers are corrected.

    Args:
        original: The float model; not changed.
        quantized: What ``insert-qdq`` made of it; operators are matched by name. Not changed.
        feeds: One array per input each. Read once.
        progress: Hears one step per wave of layers, in the stage the caller opened.
        means: What ``original`` puts out on average on these very feeds, by output: read where it
            is known, completed where not.

    Raises:
        UsageError: There is no data, or the models have no linear operator in common.
        ExecutionError: ONNX Runtime failed.
    """
    original, working = typed(original), typed(quantized)
    layers = {each.quantized.node: each for each in paired_layers(original, working)}
    wanted: MutableMapping[str, Array] = {} if means is None else means
    corrections: dict[str, tuple[float, ...]] = {}
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        observed = _and_observe(original, layers.values(), wanted, feeds)
        sweep = Sweep(working, layers, observed, Path(folder))
        rewriter = Rewriter(working, "correct-bias")
        for wave in sweep.waves:
            found = _measure(sweep, [layers[node].quantized for node in wave])
            errors = {
                layers[node].name: _difference(wanted[layers[node].original_name], found[node])
                for node in wave
            }
            for node in wave:
                shift_output(layers[node].quantized, np.array(errors[layers[node].name]), rewriter)
            corrections.update(errors)
            if progress is not None:
                progress.advance()
    return OutputErrors(corrections)


@dataclass
class _Mean:
    """The mean of each channel, over all samples and positions."""

    count: int = 0
    total: Array = field(default_factory=lambda: np.zeros(1))

    def update(self, values: Array, axis: int) -> None:
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        sums = np.sum(values, axis=others, dtype=np.float64)
        self.count += values.size // max(values.shape[axis], 1)
        self.total = self.total + sums

    def mean(self) -> Array:
        mean: Array = self.total / max(self.count, 1)
        return mean


def _difference(expected: Array, found: _Mean) -> tuple[float, ...]:
    return tuple((expected - found.mean()).tolist())


def _and_observe(
    original: ir.Model,
    layers: Collection[LayerPair],
    means: MutableMapping[str, Array],
    feeds: Iterable[Mapping[str, Array]],
) -> Iterator[Mapping[str, Array]]:
    """The feeds, each after the original has run on it; once read, ``means`` is complete."""
    axes = {each.original_name: each.original.axis for each in layers}
    unknown = {name: _Mean() for name in axes if name not in means}
    session = Session(keep_outputs(original, unknown), MEANING) if unknown else None
    empty = True
    for feed in feeds:
        empty = False
        found = {} if session is None else session.run(feed)
        for name, mean in unknown.items():
            mean.update(found[name], axes[name])
        yield feed
    if empty:
        raise UsageError("the calibration data is empty: give at least one sample")
    means.update({name: mean.mean() for name, mean in unknown.items()})


def _measure(sweep: Sweep, outputs: Collection[LinearOutput]) -> dict[ir.Node, _Mean]:
    """The mean outputs of the next wave."""
    found = {each.node: _Mean() for each in outputs}
    for values in sweep.run([each.value for each in outputs]):
        for output in outputs:
            found[output.node].update(values[output.value.name or ""], output.axis)
    return found
