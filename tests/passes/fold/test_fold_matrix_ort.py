"""What target ort makes of every row of the matrix that onnxruntime leaves in float by itself.

The rows are the graphs before, in ONNX text (fixtures/fold_matrix.py); here are the operators
after, in order, with Q and DQ for the long names. Attributes and constants of the main forms are
compared in test_fold_rules.py, the numbers of all rows in test_fold_matrix.py.
"""

from __future__ import annotations

import pytest

from fixtures.fold_matrix import FUSED, ROWS
from fixtures.fold_outcome import fold_row

_SHORT = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}

FOLDED = """
Conv, uint8 bias: QLinearConv
Conv, weights behind Reshape: QLinearConv
Conv, Relu: QLinearConv Clip
Conv, Clip: QLinearConv Clip
Conv, LeakyRelu: DQ Mul Conv LeakyRelu Q
Conv, HardSwish: DQ Conv HardSwish Q
Conv, SiLU: DQ Conv Sigmoid Mul Q
Conv, Add of a bias: QLinearConv
Conv, BatchNormalization: QLinearConv
Conv, without output quantizer: DQ Conv
Conv, two consumers: DQ Mul Conv Q Erf
Conv, quantized in two ways: DQ Mul Conv Q Q
Conv, quantized in two ways, 16 channels: QLinearConv QLinearConv
Conv, 1x1, 64 channels, without output quantizer: ConvInteger Cast Mul
Conv, real graph output in the middle: DQ Mul Conv Q
Conv, int8 graph input and output: DQ Q QLinearConv DQ Q
Conv, real sum behind it: DQ Mul Conv DQ Mul Conv Add Q
Conv, 16-bit activations: DQ Mul Conv Q
Conv, 16-bit output: DQ Mul Conv Q
Conv, float16 scales: DQ DQ Conv Q
Conv, float activations: DQ Conv
ConvTranspose: QLinearConv
ConvTranspose, strides, bias: QLinearConv DepthToSpace Slice
MatMul, int8: DQ Q QLinearMatMul DQ Q
MatMul, bias, without output quantizer: MatMulIntegerToFloat
MatMul, 3-D, bias, without output quantizer: MatMulIntegerToFloat
MatMul, bias, Relu: QGemm Clip
MatMul, two consumers: MatMulIntegerToFloat Q Erf
MatMul, weights behind Transpose: QLinearMatMul
MatMul, one scale a row: DQ Mul MatMul Q
MatMul, stacked weights, one scale a column: DQ Mul MatMul Q
MatMul, int4 weights: QLinearMatMul
MatMul, float weights: DQ Mul MatMul Q
Gemm, alpha and beta: QGemm
Gemm, negative alpha: MatMulIntegerToFloat Q
Gemm, float bias, without output quantizer: MatMulIntegerToFloat
Einsum, a product of matrices: QLinearMatMul
Einsum, an outer product: DQ Einsum Q
Add, a number: QLinearAdd
Add, a constant a channel: DQ Add Q
Add, a constant image: DQ Add Q
Add, without output quantizer: DQ DQ Add
Sub: BitwiseNot QLinearAdd
Sub, a number: QLinearAdd
Mul, a number: DQ Q
Mul, a negative number: QLinearMul
Mul, a constant a channel: DQ Mul Q
Mul, a number, without output quantizer: DQ Erf
Div, a number: DQ Q
Div, two activations: DQ DQ Div Q
Max: DQ DQ Max Q
Max, a number: DQ Max Q
Min: DQ DQ Min Q
Pow, a number: DQ Pow Q
Pow, two activations: DQ DQ Abs Pow Q
Sum: DQ DQ DQ Sum Q
Mean: DQ DQ DQ Mean Q
PRelu, one slope a channel: Cast Add Gather
Concat, a float constant: QLinearConcat
Concat, ahead of a product: Concat QLinearMatMul
Equal: DQ DQ Equal
Greater, a number: DQ Greater
Relu: QLinearLeakyRelu
Relu, the same scales: Clip
Relu, without output quantizer: Clip DQ
Clip: Clip DQ Q
Clip, without output quantizer: Clip DQ
Abs: QLinearLeakyRelu
Neg: DQ Neg Q
HardSigmoid: DQ HardSigmoid Q
HardSwish: DQ HardSwish Q
Elu: Cast Gather
Selu: Cast Gather
Celu: Cast Gather
Softplus: Cast Gather
Softsign: DQ Softsign Q
Mish: Cast Gather
Gelu: DQ Gelu Q
Erf: DQ Erf Q
Tanh: DQ Tanh Q
Sign: DQ Sign Q
Sin: Cast Gather
Cos: Cast Gather
ThresholdedRelu: DQ ThresholdedRelu Q
Floor: DQ Floor Q
Ceil: DQ Ceil Q
Round: DQ Round Q
Exp: DQ Exp Q
Sqrt: DQ Abs Sqrt Q
Log: Cast Gather
Reciprocal: DQ Abs Add Reciprocal Q
Sigmoid, without output quantizer: DQ Sigmoid
SiLU: DQ Sigmoid Mul Q
Gelu, spelled out: DQ Div Erf Add Mul Q
Reshape, to another scale: Reshape DQ Q
Flatten, to another scale: Flatten DQ Q
Squeeze, to another scale: Squeeze DQ Q
Unsqueeze, to another scale: Unsqueeze DQ Q
Transpose, to another scale: Transpose DQ Q
Transpose, absent zero points: Transpose
Slice, to another scale: Slice DQ Q
Split: Split
Split, to another scale: Split DQ Q
Gather, to another scale: Gather DQ Q
GatherElements, to another scale: GatherElements DQ Q
GatherND: GatherND
GatherND, to another scale: GatherND DQ Q
ScatterElements: ScatterElements
ScatterElements, to another scale: Cast Sub Mul Q Cast Sub Mul Q ScatterElements
ScatterND: GatherND Cast Sub Mul Q ScatterND
Expand, to another scale: Expand DQ Q
Tile, to another scale: Tile DQ Q
Pad: Pad
Pad, to another scale: Pad DQ Q
Pad, edge: Pad
Pad, a number: Pad
Pad, without output quantizer: Pad DQ
DepthToSpace, to another scale: DepthToSpace DQ Q
SpaceToDepth: Cast SpaceToDepth Cast
SpaceToDepth, to another scale: Cast SpaceToDepth Cast DQ Q
ReverseSequence: Transpose ReverseSequence
CenterCropPad: DQ CenterCropPad Q
Trilu: DQ Trilu Q
Compress: Compress
Resize, nearest: Resize DQ Q
Resize, linear: DQ Mul Resize Q
Resize, cubic: Cast Sub Transpose MatMul Transpose MatMul Cast Mul Add Cast BitShift Clip Cast
TopK: Cast TopK Cast DQ Q
MaxPool, indices: MaxPool
MaxPool, to another scale: Cast MaxPool Cast DQ Q
GlobalMaxPool: ReduceMax DQ Q
ReduceMean, whole maps: QLinearGlobalAveragePool
ReduceMean, last axis: DQ ReduceMean Q
ReduceSum: DQ ReduceSum Q
ReduceMin, to another scale: ReduceMin DQ Q
ReduceL2: DQ ReduceL2 Q
ReduceProd: DQ ReduceProd Q
CumSum: DQ CumSum Q
LogSoftmax: DQ LogSoftmax Q
LayerNormalization: DQ LayerNormalization Q
InstanceNormalization: DQ InstanceNormalization Q
BatchNormalization: DQ BatchNormalization Q
LRN: DQ LRN Q
Gather, dequantized table: Gather DQ
Gather, dequantized table, one scale a row: Gather Cast Gather Mul
Gather, dequantized table, quantized again: Gather
LSTM, dequantized weights: DQ LSTM
GRU, dequantized weights: DQ GRU
If, Conv in a body: If
If, Conv in a body of a body: If
Scan, slices, Conv in the body: Scan
Loop, a state that is quantized: Loop
If, quantized in a body: If
local function, Relu between Q and DQ: Clip
"""

EXPECTED = {
    name: ops for name, _, ops in (line.partition(": ") for line in FOLDED.strip().splitlines())
}


def test_every_row_that_onnxruntime_leaves_is_here() -> None:
    assert {*EXPECTED} == {*ROWS} - FUSED


@pytest.mark.parametrize("name", EXPECTED)
def test_row_becomes(name: str) -> None:
    graph = fold_row(ROWS[name], "ort").model.graph
    assert " ".join(_SHORT.get(node.op_type, node.op_type) for node in graph) == EXPECTED[name]
