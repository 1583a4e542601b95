"""The matrix of the fold: every row on every target, what is left in float, and the numbers."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from fixtures.fake_quant.contract import OPTIMIZED, judge
from fixtures.fake_quant.drawing import Array, Drawing
from fixtures.fake_quant.survey import Original, Survey
from fixtures.fold_matrix import FUSED, ROWS
from fixtures.fold_outcome import TARGETS, fold_row
from fixtures.fold_row import Row
from fixtures.fold_table import table
from onnxfold.passes.float_ops import float_ops_between
from onnxfold.passes.fold import costs
from onnxfold.passes.fold.targets import ort_elementwise
from onnxfold.runtime.session import REFERENCE, Session, version

ALL = "ort standard qdq integer"

_UNROUNDED = ", and an integer kernel that does not round gains little or nothing here (measured)"

LEFT: dict[tuple[str, str], str] = {
    ("`x` is not quantized", ALL): ("Conv, float weights"),
    ("its output is read unrounded by LeakyRelu `x`", "qdq"): ("Conv, LeakyRelu"),
    (f"its output is read unrounded by LeakyRelu `x`{_UNROUNDED}", "ort"): ("Conv, LeakyRelu"),
    ("its output is read unrounded by HardSwish `x`", "qdq"): ("Conv, HardSwish"),
    (f"its output is read unrounded by HardSwish `x`{_UNROUNDED}", "ort"): ("Conv, HardSwish"),
    ("its output is read unrounded by Sigmoid `x`", "qdq"): ("Conv, SiLU"),
    (f"its output is read unrounded by Sigmoid `x`{_UNROUNDED}", "ort"): ("Conv, SiLU"),
    ("it is computed after the last DequantizeLinear", "ort"): (
        "LSTM, dequantized weights; GRU, dequantized weights"
    ),
    ("its output `x` leaves the graph unrounded", "qdq"): (
        "Conv, without output quantizer; Conv, real graph output in the middle; Conv, 1x1, 64 "
        "channels, without output quantizer"
    ),
    ("the graph output `x` is float", "ort"): ("Conv, 1x1, 64 channels, without output quantizer"),
    (f"its output `x` leaves the graph unrounded{_UNROUNDED}", "ort"): (
        "Conv, without output quantizer; Conv, real graph output in the middle"
    ),
    ("its output is read unrounded by Erf `x`", "qdq"): ("Conv, two consumers"),
    (f"its output is read unrounded by Erf `x`{_UNROUNDED}", "ort"): ("Conv, two consumers"),
    ("it is computed after the last DequantizeLinear", "standard integer"): (
        "Conv, two consumers; MatMul, bias, without output quantizer; MatMul, 3-D, bias, "
        "without output quantizer; MatMul, two consumers; Gemm, float bias, without output "
        "quantizer"
    ),
    ("its output is quantized in several ways, or not to 8 bits per tensor", "qdq"): (
        "Conv, quantized in two ways; Conv, quantized in two ways, 16 channels; Conv, 16-bit output"
    ),
    (
        f"its output is quantized in several ways, or not to 8 bits per tensor{_UNROUNDED}",
        "ort",
    ): ("Conv, quantized in two ways; Conv, 16-bit output"),
    ("integer, rescaled", "ort"): (
        "Conv, int8 graph input and output; MatMul, int8; Mul, a number; Div, a number; "
        "Where; Where, a float constant; Clip; Reshape, to another scale; Flatten, to another"
        " scale; Squeeze, to another scale; Unsqueeze, to another scale; Transpose, to "
        "another scale; Transpose, int8; Slice, to another scale; Split, to another scale; "
        "Gather, to another scale; GatherElements, to another scale; GatherND, to another "
        "scale; ScatterElements, to another scale; ScatterND; Expand, to another scale; Tile,"
        " to another scale; Pad, to another scale; DepthToSpace, to another scale; Resize, "
        "nearest; TopK; Q, DQ, Q, DQ, other parameters; GlobalMaxPool; ReduceMin, to another "
        "scale"
    ),
    ("its output is read unrounded by Add `x`", "qdq"): ("Conv, real sum behind it"),
    (f"its output is read unrounded by Add `x`{_UNROUNDED}", "ort"): ("Conv, real sum behind it"),
    (
        "only its weights are quantized: `x` is quantized of type UINT16, which no integer "
        "kernel takes",
        "ort",
    ): ("Conv, 16-bit activations"),
    ("`x` is quantized to uint16, which no integer kernel takes", "qdq"): (
        "Conv, 16-bit activations"
    ),
    ("the scale of `x` is blocked, not constant, or not float32", ALL): ("Conv, float16 scales"),
    ("only its weights are quantized: `x` is not quantized", ALL): ("Conv, float activations"),
    ("there is no integer kernel for ConvTranspose", "qdq"): (
        "ConvTranspose; ConvTranspose, strides, bias"
    ),
    (
        "com.microsoft::MatMulIntegerToFloat `x` gives it real numbers, and no type with them",
        "ort",
    ): ("MatMul, two consumers"),
    ("its weights have one scale per index of axis 0", ALL): ("MatMul, one scale a row"),
    ("batched weights need one scale per tensor", "ort qdq"): (
        "MatMul, stacked weights, one scale a column"
    ),
    ("a vector operand has no integer kernel", "qdq"): ("MatMul, vector"),
    ("its constant `x` is not quantized", ALL): ("MatMul, float weights"),
    ("only weights are quantized, behind Cast and Mul", "ort"): (
        "MatMul, weights only, int8; MatMul, weights only, int4 in blocks"
    ),
    ("only its weights are quantized: `x` is not quantized", "standard qdq integer"): (
        "MatMul, weights only, int8"
    ),
    ("the scale of `x` is blocked, not constant, or not float32", "standard qdq integer"): (
        "MatMul, weights only, int4 in blocks"
    ),
    ("com.microsoft::MatMulIntegerToFloat computes with real numbers at this edge", "ort"): (
        "Gemm, negative alpha"
    ),
    ("there is no integer rule for Einsum", ALL): ("Einsum, an outer product"),
    ("its integer kernel is slower than the float one (measured)", "ort"): (
        "Add, a constant a channel; Add, a constant image; Mul, a constant a channel; Max, a "
        "number; Pow, a number; Sum; Mean; Neg; HardSigmoid; HardSwish; Softsign; Gelu; Erf; "
        "Tanh; Sign; ThresholdedRelu; Floor; Ceil; Round; Exp; Sqrt; Reciprocal; SiLU; Gelu, "
        "spelled out; CenterCropPad; Trilu; Resize, linear; MaxPool; MaxPool, to another "
        "scale; AveragePool, padding left out; ReduceMean, last axis; ReduceSum; CumSum; "
        "Softmax; BatchNormalization"
    ),
    ("it is computed after the last DequantizeLinear", ALL): (
        "Add, without output quantizer; Mul, a number, without output quantizer; Equal; "
        "Greater, a number; Sigmoid, without output quantizer"
    ),
    ("no integer kernel divides by a computed value", ALL): ("Div, two activations"),
    ("onnxruntime 1.23 has no integer kernel for it", "ort"): (
        "Max; Min; SpaceToDepth; SpaceToDepth, to another scale"
    ),
    ("there is no integer form of Pow of several computed values", ALL): ("Pow, two activations"),
    ("it is computed after the last DequantizeLinear", "qdq"): (
        "Transpose, without output quantizer; Pad, without output quantizer; ArgMax"
    ),
    ("no integer kernel computes ReduceL2", ALL): ("ReduceL2"),
    ("no integer kernel computes ReduceProd", ALL): ("ReduceProd"),
    ("the logarithm of the sum of exponentials needs real numbers", ALL): ("LogSoftmax"),
    ("normalization needs the real mean and variance", ALL): (
        "LayerNormalization; InstanceNormalization"
    ),
    ("normalization needs the real sum of squares", ALL): ("LRN"),
    ("only its weights are quantized", "qdq"): ("Gather, dequantized table"),
    ("it is computed after the last DequantizeLinear", "ort standard integer"): (
        "Gather, dequantized table, one scale a row"
    ),
    ("its state is a real number at every step, which codes would round", "standard qdq integer"): (
        "LSTM, dequantized weights"
    ),
    (
        "its state is a real number at every step, which codes would round, and onnxruntime has no "
        "GRU that rounds them",
        "standard qdq integer",
    ): ("GRU, dequantized weights"),
    ("its scales are computed at run time, for each input anew", ALL): (
        "MatMulInteger, dynamic quantization"
    ),
}
"""What is not all integer, or not in Q/DQ form: why, on which targets; and the rows."""


class _Written(Drawing):
    """A row as a drawing, which the survey takes."""

    def __init__(self, row: Row) -> None:
        super().__init__(random.Random(0), row.opset)
        self._row = row
        self.feed = row.feed()

    def proto(self) -> onnx.ModelProto:
        return self._row.model()


def test_the_page_of_the_fold_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "fold.md"
    assert f"\n{table()}" in page.read_text(encoding="utf-8")


def test_every_row_left_is_a_row() -> None:
    assert {name for names in LEFT.values() for name in names.split("; ")} <= {*ROWS}
    assert {*ROWS} >= FUSED


def _expected(name: str, target: str) -> str:
    for (reason, targets), names in LEFT.items():
        if target in targets.split() and name in names.split("; "):
            return reason
    return "Q/DQ" if target == "qdq" else "integer"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ROWS)
def test_what_is_left_in_float(name: str, target: str) -> None:
    outcome = fold_row(ROWS[name], target)
    assert (outcome.reason or outcome.text) == _expected(name, target)
    if outcome.text == "integer" and target in ("standard", "integer"):
        assert not float_ops_between(outcome.model, strict=target == "integer")


@pytest.mark.parametrize("name", ROWS)
def test_numbers(name: str) -> None:
    original = Original(_Written(ROWS[name]))
    for target in TARGETS:
        folded = fold_row(ROWS[name], target).model
        for config in (REFERENCE, OPTIMIZED):
            found = Survey.of_fold(original, folded).run(config)
            for region in found:
                assert not judge(region), f"{target}, {config.name}"
            if not found:
                results = Session(folded, config).run(original.feed)
                for output, result in results.items():
                    assert _near(original.values[output], result), f"{target}, {config.name}"


def _near(want: Array, got: Array) -> bool:
    """Whether codes are at most one apart, and real numbers as good as equal."""
    difference = np.abs(want.astype(np.float64) - got.astype(np.float64))
    reach = 1.0 if want.dtype.kind in "iu" else 1e-5 * float(np.max(np.abs(want)))
    return want.dtype == got.dtype and bool(np.all(difference <= reach))


@pytest.mark.parametrize("name", ROWS)
def test_results_are_no_constants(name: str) -> None:
    row = ROWS[name]
    for output in Session(row.model()).run(row.feed()).values():
        codes = np.asarray(output)
        assert len(np.unique(codes)) >= min(3, codes.size) or codes.dtype == bool
        if codes.dtype.itemsize == 1 and codes.dtype.kind in "iu":
            limits = np.iinfo(codes.dtype)
            assert np.mean((codes == limits.min) | (codes == limits.max)) < 0.5


@pytest.mark.skipif(version() < "1.32", reason="the column is about onnxruntime 1.32")
@pytest.mark.parametrize("name", ROWS)
def test_what_onnxruntime_does_by_itself(name: str, tmp_path: Path) -> None:
    path = tmp_path / "optimized.onnx"
    Session(ROWS[name].model(), OPTIMIZED, optimized_model_path=path)
    assert _reads_real_numbers(onnx.load(path).graph) is (name not in FUSED)


def _reads_real_numbers(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> bool:
    """Whether anything but a QuantizeLinear reads what a DequantizeLinear gives."""
    real = outer | {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    bodies = [each.g for node in graph.node for each in node.attribute if each.g.node]
    return any(_reads_real_numbers(body, real) for body in bodies) or any(
        node.op_type != "QuantizeLinear" and real.intersection(node.input) for node in graph.node
    )


@pytest.mark.parametrize("name", ROWS)
def test_what_is_said_to_be_measured_is_written_down(name: str) -> None:
    outcome = fold_row(ROWS[name], "ort")
    if "(measured" in outcome.text:
        figures = f"{costs.__doc__}{ort_elementwise.__doc__}"
        ops = outcome.text.partition(":")[0].split(", ")
        assert any(re.search(rf"\b{op}\b", figures) for op in ops)
