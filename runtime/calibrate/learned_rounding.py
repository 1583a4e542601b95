"""Learns the rounding of a quantized model's weights, layer by layer, from the float model.

Each layer is fed with what the quantized model feeds it, its earlier layers rounded anew already,
and is to put out what the float model puts out there: so it makes up for the errors before it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.linear_fold import replace_constant
from onnxfold.passes.quantize.linear_outputs import Dequantized, LinearOutput
from onnxfold.passes.quantize.weight_codes import WeightCodes
from onnxfold.passes.quantize.weight_rounding import WeightRounding
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.calibrate.adaround import RoundingOptions, RoundingTask, Rows, learn_codes
from onnxfold.runtime.calibrate.counterparts import LayerPair, paired_layers, typed
from onnxfold.runtime.calibrate.input_rows import InputRows
from onnxfold.runtime.calibrate.limits import activation_limits
from onnxfold.runtime.calibrate.sweep import MEANING, Sweep
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import Session
from onnxfold.runtime.verify.cut import keep_outputs

_HELD_OUT = 4
"""One of so many feeds judges what was learned on the others."""


def measure_rounding(
    original: ir.Model,
    quantized: ir.Model,
    feeds: Iterable[Mapping[str, Array]],
    *,
    options: RoundingOptions | None = None,
    progress: Progress | None = None,
) -> WeightRounding:
    """Codes of the weights of ``quantized``, for ``round-weights``.

    Layer-wise reconstruction with asymmetric inputs (Nagel et al., "Up or Down? Adaptive Rounding
    for Post-Training Quantization", 2020, sections 3.3 and 3.4). Conv, Gemm and MatMul with
    weights of their own learn; whatever else there is keeps its codes, as does each output channel
    whose error on held-out feeds does not become smaller.

    Args:
        original: The float model; not changed.
        quantized: What ``insert-qdq`` made of it; operators are matched by name. Not changed.
        feeds: One array per input each. Read once.
        options: How long and how carefully.
        progress: Hears one step per wave of layers, in the stage the caller opened.

    Raises:
        UsageError: There is no data, or the models have no linear operator in common.
        ExecutionError: ONNX Runtime failed.
    """
    options = options or RoundingOptions()
    original, working = typed(original), typed(quantized)
    found = (_Layer.match(each, options) for each in paired_layers(original, working))
    layers = {each.node: each for each in found if each is not None}
    rewriter, learned = Rewriter(working, "round-weights"), dict[str, Array]()
    if not layers:
        return WeightRounding(learned)
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        observed = _and_observe(original, layers.values(), feeds, options.rows)
        sweep = Sweep(working, layers, observed, Path(folder))
        for wave in sweep.waves:
            for values in sweep.run([value for node in wave if (value := node.inputs[0])]):
                for node in wave:
                    layers[node].take_inputs(values, options.rows)
            for node in wave:
                layer = layers[node]
                codes = layer.learn(options)
                if not np.array_equal(codes, layer.weights.stored):
                    learned[layer.name] = codes
                    with rewriter.step("round-weights", node):
                        replace_constant(rewriter, layer.weights.dequantize, 0, codes)
            if progress is not None:
                progress.advance()
    return WeightRounding(learned)


@dataclass(eq=False)
class _Layer:
    """A linear operator of the quantized model, and the rows it was seen with."""

    name: str
    output: LinearOutput
    original: LinearOutput
    weights: WeightCodes
    wanted: Array
    bias: Array
    limits: tuple[float, float]
    rows: InputRows
    most: int
    inputs: list[Array] = field(default_factory=list[Array])
    targets: list[Array] = field(default_factory=list[Array])

    @classmethod
    def match(cls, pair: LayerPair, options: RoundingOptions) -> _Layer | None:
        """Describe a layer whose codes can be learned; None for others."""
        node, original = pair.quantized.node, pair.original.node
        codes, wanted = WeightCodes.match(node), constant_array(original.inputs[1])
        bias = _bias(pair.quantized)
        if codes is None or wanted is None or bias is None or wanted.shape != codes.stored.shape:
            return None
        rows = InputRows.of(node, codes.rows)
        if rows is None or len(codes.dequantize.outputs[0].uses()) > 1:
            return None
        return cls(
            name=pair.name,
            output=pair.quantized,
            original=pair.original,
            weights=codes,
            wanted=codes.rows.to_rows(wanted.astype(np.float64)),
            bias=bias.reshape(codes.rows.shape[:2]),
            limits=activation_limits(pair.quantized.value),
            rows=rows,
            most=options.numbers // max(codes.rows.shape[0] * codes.rows.shape[2], 1),
        )

    @property
    def node(self) -> ir.Node:
        """The operator."""
        return self.output.node

    def take_inputs(self, values: Mapping[str, Array], rows: int) -> None:
        """Keep some of the vectors that the weights are multiplied by."""
        room = self.most - sum(each.shape[1] for each in self.inputs)
        self.inputs.append(self.rows.take(values[self.rows.data], min(rows, room)))

    def take_targets(self, values: Mapping[str, Array], rows: int) -> None:
        """Keep what the float model puts out at the same places."""
        name, rank = self.original.value.name or "", len(self.rows.kernel)
        ones = (1,) * rank
        places = InputRows(name, 1, False, ones, ones, ones, (0,) * (2 * rank))
        room = self.most - sum(each.shape[1] for each in self.targets)
        outputs = places.take(values[name], min(rows, room))[0]
        outputs = outputs.reshape(len(outputs), *self.weights.rows.shape[:2])
        self.targets.append(np.clip(np.swapaxes(outputs, 0, 1), *self.limits))

    def learn(self, options: RoundingOptions) -> Array:
        """The codes to have from now on, as they are stored; forgets the rows."""
        task = RoundingTask(
            self.wanted, self.weights.codes, self.weights.grid, self.bias, *self.limits
        )
        training, held_out = self._split()
        self.inputs, self.targets = [], []
        return self.weights.store(learn_codes(task, training, held_out, options))

    def _split(self) -> tuple[Rows, Rows]:
        inputs = np.concatenate(self.inputs, axis=1, dtype=np.float32)
        targets = np.concatenate(self.targets, axis=1, dtype=np.float32)
        feed = np.repeat(np.arange(len(self.inputs)), [each.shape[1] for each in self.inputs])
        if len(self.inputs) < _HELD_OUT:
            feed = np.arange(len(feed))
        is_held_out = feed % _HELD_OUT == _HELD_OUT - 1
        rows = Rows(inputs, targets)
        return rows.at(np.flatnonzero(~is_held_out)), rows.at(np.flatnonzero(is_held_out))


def _bias(output: LinearOutput) -> Array | None:
    """The bias of a layer, float64 [channels]; None where it is not constant, or scaled."""
    node = output.node
    if any(node.attributes.get_float(each, 1.0) != 1.0 for each in ("alpha", "beta")):
        return None
    if output.add is not None:
        index = 1 if output.add.inputs[0] is node.outputs[0] else 0
        value = output.add.inputs[index]
    else:
        value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(output.channels)
    codes = Dequantized.match(value)
    array = constant_array(value if codes is None else codes.codes)
    if array is None or array.size not in (1, output.channels):
        return None
    real = array.astype(np.float64).reshape(-1)
    if codes is not None:
        zero = constant_array(codes.node.inputs[2]) if len(codes.node.inputs) > 2 else None
        real = (real - (0 if zero is None else zero.astype(np.float64).reshape(-1))) * codes.scale
    bias: Array = np.broadcast_to(real.reshape(-1), (output.channels,))
    return bias


def _and_observe(
    original: ir.Model,
    layers: Iterable[_Layer],
    feeds: Iterable[Mapping[str, Array]],
    rows: int,
) -> Iterator[Mapping[str, Array]]:
    """The feeds, each after the original has run on it."""
    layers = list(layers)
    targets = dict.fromkeys(each.original.value.name or "" for each in layers)
    session = Session(keep_outputs(original, targets), MEANING)
    empty = True
    for feed in feeds:
        empty = False
        found = session.run(feed)
        for layer in layers:
            layer.take_targets(found, rows)
        yield feed
    if empty:
        raise UsageError("the calibration data is empty: give at least one sample")
