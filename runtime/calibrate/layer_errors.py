"""Measures by how much a quantized model's linear operators are off on average, layer by layer.

Each layer is measured behind layers that are corrected already, fed with what the quantized model
feeds it. Layers that do not depend on each other make one wave; the values that later waves need
are kept in files, so every operator runs twice on every feed, however deep the model is, and
memory holds one feed.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    layers = _layers(original, working)
    waves = _waves(working.graph, layers)
    corrections: dict[str, tuple[float, ...]] = {}
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        values = _and_observe(original, layers.values(), feeds)
        borders: dict[str, ir.TypeAndShape] | None = None
        for number, wave in enumerate(waves):
            files = Path(folder) / str(number)
            last = number == len(waves) - 1
            frontier = () if last else _frontier(working.graph, layers, number)
            found, borders = _run_wave(working, wave, frontier, borders, values, files)
            errors = {node: _difference(layers[node].mean, found[node]) for node in wave}
            CorrectBias(OutputErrors({node_name(each): errors[each] for each in wave})).run(working)
            corrections.update({layers[node].name: errors[node] for node in wave})
            values = _stored(files, frontier)
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


@dataclass
class _Layer:
    """A linear operator of the quantized model, and what the original's counterpart puts out."""

    name: str
    counterpart: LinearOutput
    mean: _Mean = field(default_factory=_Mean)


def _outputs(model: ir.Model) -> list[LinearOutput]:
    found = (LinearOutput.match(node) for node in model.graph)
    return [each for each in found if each is not None]


def _layers(original: ir.Model, quantized: ir.Model) -> dict[ir.Node, _Layer]:
    """The linear operators both models have: in the same order, or else of the same names."""
    old, new = _outputs(original), _outputs(quantized)
    names = Counter(node_name(node) for node in quantized.graph)
    if [_kind(each) for each in old] == [_kind(each) for each in new]:
        # Quantizing renames what computes a graph output: only the order always stays.
        pairs = list(zip(new, old, strict=True))
    else:
        known = {node_name(each.node): each for each in old}
        named = ((each, known.get(node_name(each.node))) for each in new)
        pairs = [(each, found) for each, found in named if found and _kind(each) == _kind(found)]
    layers = {
        each.node: _Layer(node_name(each.node), found)
        for each, found in pairs
        if names[node_name(each.node)] == 1
    }
    if not layers:
        raise UsageError("the quantized model has no linear operator of the original's")
    return layers


def _kind(output: LinearOutput) -> tuple[str, int]:
    return output.node.op_type, output.channels


def _levels(graph: ir.Graph, layers: Collection[ir.Node]) -> dict[ir.Value, int]:
    """How many of ``layers`` lie on the longest way to each value that data reaches."""
    levels = dict.fromkeys(graph.inputs, 0)
    for node in graph:
        reached = [levels[value] for value in values_read(node, graph) if value in levels]
        if reached:
            level = max(reached) + (node in layers)
            levels.update(dict.fromkeys(node.outputs, level))
    return levels


def _waves(graph: ir.Graph, layers: Collection[ir.Node]) -> list[list[ir.Node]]:
    """Layers that do not depend on each other together, in the order of dependence."""
    levels = _levels(graph, layers)
    waves: dict[int, list[ir.Node]] = {}
    for node in layers:
        waves.setdefault(levels.get(node.outputs[0], 1), []).append(node)
    return [waves[level] for level in sorted(waves)]


def _frontier(graph: ir.Graph, layers: Collection[ir.Node], wave: int) -> tuple[str, ...]:
    """Names of the values before ``wave`` that this wave and all that follows it read."""
    levels = _levels(graph, layers)
    found: dict[str, None] = {}
    for node in graph:
        if all(levels.get(output, 0) <= wave for output in node.outputs):
            continue
        read = [value for value in values_read(node, graph) if value in levels]
        found.update(dict.fromkeys(each.name or "" for each in read if levels[each] <= wave))
    return tuple(found)


def _and_observe(
    original: ir.Model, layers: Collection[_Layer], feeds: Iterable[Mapping[str, Array]]
) -> Iterator[Mapping[str, Array]]:
    """The feeds, each after the original has run on it."""
    targets = dict.fromkeys(each.counterpart.value.name or "" for each in layers)
    session = Session(keep_outputs(original, targets), _CONFIG)
    empty = True
    for feed in feeds:
        empty = False
        found = session.run(feed)
        for layer in layers:
            output = layer.counterpart
            layer.mean.update(found[output.value.name or ""], output.axis)
        yield feed
    if empty:
        raise UsageError("the calibration data is empty: give at least one sample")


def _run_wave(
    model: ir.Model,
    wave: Sequence[ir.Node],
    frontier: Sequence[str],
    borders: Mapping[str, ir.TypeAndShape] | None,
    values: Iterable[Mapping[str, Array]],
    folder: Path,
) -> tuple[dict[ir.Node, _Mean], dict[str, ir.TypeAndShape]]:
    """Run what lies between ``borders`` (the model's inputs if None) and a wave, on all feeds.

    Returns:
        The mean outputs of the wave, and the type of each value of the frontier; those values
        themselves lie in ``folder``.
    """
    outputs = [each for each in _outputs(model) if each.node in wave]
    targets = dict.fromkeys(each.value.name or "" for each in outputs)
    found = {node: _Mean() for node in wave}
    types: dict[str, ir.TypeAndShape] = {}
    session: Session | None = None
    folder.mkdir()
    for index, known in enumerate(values):
        if session is None:
            wanted = [*targets, *(name for name in frontier if name not in known)]
            cut, _ = cut_at(model, wanted, {} if borders is None else borders)
            session = Session(cut, _CONFIG)
        result = session.run({spec.name: known[spec.name] for spec in session.inputs})
        for output in outputs:
            found[output.node].update(result[output.value.name or ""], output.axis)
        kept = [np.asarray(result[name] if name in result else known[name]) for name in frontier]
        # Protocol 5 writes arrays as they lie in memory, of every element type there is.
        (folder / str(index)).write_bytes(pickle.dumps(kept, protocol=5))
        types = {name: _type_of(array) for name, array in zip(frontier, kept, strict=True)}
    return found, types


def _type_of(array: Array) -> ir.TypeAndShape:
    return ir.TypeAndShape(ir.TensorType(ir.DataType.from_numpy(array.dtype)), None)


def _stored(folder: Path, names: Sequence[str]) -> Iterator[Mapping[str, Array]]:
    """The values of each feed, from their files, which are removed."""
    for index in range(len(list(folder.iterdir()))):
        path = folder / str(index)
        arrays: list[Array] = pickle.loads(path.read_bytes())
        path.unlink()
        yield dict(zip(names, arrays, strict=True))
