"""Measures by how much a quantized model's linear operators are off on average, layer by layer.

Each layer is measured behind layers that are corrected already, fed with what the quantized model
feeds it. Layers that do not depend on each other make one wave; the values that later waves need
are kept in files, so every operator runs twice on every feed, however deep the model is, and
memory holds one feed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.correct_bias import CorrectBias
from onnxfold.passes.quantize.linear_outputs import LinearOutput
from onnxfold.passes.quantize.output_errors import OutputErrors
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.verify.cut import cut_at, keep_outputs, values_read

_CONFIG = replace(REFERENCE, name="output errors", threads=0)
"""What the quantized model means: ONNX Runtime's optimizer is known to misread some of them."""


def measure_output_errors(
    original: ir.Model,
    quantized: ir.Model,
    feeds: Iterable[Mapping[str, Array]],
    *,
    progress: Progress | None = None,
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

    Raises:
        UsageError: There is no data, or the models have no linear operator in common.
        ExecutionError: ONNX Runtime failed.
    """
    original, working = _typed(original), _typed(quantized)
    names = _common(original, working)
    waves = _waves(working.graph, names)
    expected = {name: _Mean() for name in names}
    corrections: dict[str, tuple[float, ...]] = {}
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        values = _and_observe(original, expected, feeds)
        borders: dict[str, Any] | None = None
        for number, wave in enumerate(waves):
            last = number == len(waves) - 1
            frontier = () if last else _frontier(working.graph, names, number)
            found, borders = _run_wave(
                working, wave, frontier, borders, values, Path(folder) / str(number)
            )
            fresh = {name: _difference(expected[name], found[name]) for name in wave}
            working = Pipeline((CorrectBias(OutputErrors(fresh)),)).run(working).model
            corrections.update(fresh)
            values = _stored(Path(folder) / str(number), tuple(frontier))
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


def _difference(expected: _Mean, found: _Mean) -> tuple[float, ...]:
    return tuple((expected.mean() - found.mean()).tolist())


def _typed(model: ir.Model) -> ir.Model:
    """A copy in which the types of intermediate values are known."""
    return Pipeline(parse_passes("infer-shapes")).run(model.clone()).model


def _outputs(model: ir.Model) -> dict[str, LinearOutput]:
    found = ((node_name(node), LinearOutput.match(node)) for node in model.graph)
    return {name: output for name, output in found if name and output is not None}


def _common(original: ir.Model, quantized: ir.Model) -> tuple[str, ...]:
    """Names of the linear operators that both models have, in the order of ``quantized``."""
    known = _outputs(original)
    names = tuple(
        name
        for name, output in _outputs(quantized).items()
        if name in known and known[name].channels == output.channels
    )
    if not names:
        raise UsageError("the quantized model has no linear operator of the original's names")
    return names


def _levels(graph: ir.Graph, names: Sequence[str]) -> dict[ir.Value, int]:
    """How many of the named operators lie on the longest way to each value that data reaches."""
    named = set(names)
    levels = dict.fromkeys(graph.inputs, 0)
    for node in graph:
        reached = [levels[value] for value in values_read(node, graph) if value in levels]
        if reached:
            level = max(reached) + (node_name(node) in named)
            levels.update(dict.fromkeys(node.outputs, level))
    return levels


def _waves(graph: ir.Graph, names: Sequence[str]) -> list[list[str]]:
    levels = _levels(graph, names)
    nodes = {node_name(node): node for node in graph}
    waves: dict[int, list[str]] = {}
    for name in names:
        waves.setdefault(levels.get(nodes[name].outputs[0], 1), []).append(name)
    return [waves[level] for level in sorted(waves)]


def _frontier(graph: ir.Graph, names: Sequence[str], wave: int) -> tuple[str, ...]:
    """The values before ``wave`` that this wave and all that follows it read."""
    levels = _levels(graph, names)
    found: dict[str, None] = {}
    for node in graph:
        if all(levels.get(output, 0) <= wave for output in node.outputs):
            continue
        before = (
            value for value in values_read(node, graph) if levels.get(value, wave + 1) <= wave
        )
        found.update(dict.fromkeys(value.name or "" for value in before))
    return tuple(found)


def _and_observe(
    original: ir.Model, expected: Mapping[str, _Mean], feeds: Iterable[Mapping[str, Array]]
) -> Iterator[Mapping[str, Array]]:
    """The feeds, each after the original has run on it."""
    outputs = {name: each for name, each in _outputs(original).items() if name in expected}
    targets = {name: each.value.name or "" for name, each in outputs.items()}
    session = Session(keep_outputs(original, dict.fromkeys(targets.values())), _CONFIG)
    empty = True
    for feed in feeds:
        empty = False
        found = session.run(feed)
        for name, output in outputs.items():
            expected[name].update(found[targets[name]], output.axis)
        yield feed
    if empty:
        raise UsageError("the calibration data is empty: give at least one sample")


def _run_wave(
    model: ir.Model,
    wave: Sequence[str],
    frontier: Sequence[str],
    borders: Mapping[str, Any] | None,
    values: Iterable[Mapping[str, Array]],
    folder: Path,
) -> tuple[dict[str, _Mean], dict[str, Any]]:
    """Run what lies between ``borders`` (the model's inputs if None) and a wave, on all feeds.

    Returns:
        The mean outputs of the wave, and the type of each value of the frontier; those values
        themselves lie in ``folder``.
    """
    outputs = {name: each for name, each in _outputs(model).items() if name in wave}
    targets = {name: each.value.name or "" for name, each in outputs.items()}
    found = {name: _Mean() for name in wave}
    types: dict[str, Any] = {}
    session: Session | None = None
    folder.mkdir()
    for index, known in enumerate(values):
        if session is None:
            wanted = [*targets.values(), *(name for name in frontier if name not in known)]
            cut, _ = cut_at(model, wanted, {} if borders is None else borders)
            session = Session(cut, _CONFIG)
        result = session.run({spec.name: known[spec.name] for spec in session.inputs})
        for name, output in outputs.items():
            found[name].update(result[targets[name]], output.axis)
        kept = [np.asarray(result[name] if name in result else known[name]) for name in frontier]
        np.savez(folder / f"{index}.npz", *kept)
        types = {name: _type_of(array) for name, array in zip(frontier, kept, strict=True)}
    return found, types


def _type_of(array: Array) -> ir.TypeAndShape:
    return ir.TypeAndShape(ir.TensorType(ir.DataType.from_numpy(array.dtype)), None)


def _stored(folder: Path, names: Sequence[str]) -> Iterator[Mapping[str, Array]]:
    """The values of each feed, from their files, which are removed."""
    for index in range(len(list(folder.iterdir()))):
        path = folder / f"{index}.npz"
        with np.load(path) as file:
            values = {name: file[f"arr_{place}"] for place, name in enumerate(names)}
        path.unlink()
        yield values
