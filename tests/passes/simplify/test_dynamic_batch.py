"""dynamic-batch: samples at once give what they give one by one, or an error says why not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import Session
from onnxfold.runtime.verify.compare import compare_models

_RNG = np.random.default_rng(0)
_CONSTANTS: dict[str, Any] = {
    "zero": [0],
    "one": [1],
    "two": [2],
    "four": [4],
    "scalar_one": 1,
    "flat": [1, 24],
    "sequence": [1, 8, 3],
    "grouped": [2, 12],
    "apart": [2, 1, 4, 3],
    "last": [8, 3],
    "whole": [1, 2, 4, 3],
    "twice": [1, 1, 2, 1],
    "larger": [1, 2, 8, 6],
    "border": [0, 0, 1, 0, 0, 0, 0, 1],
    "two_numbers": [1, 1],
    "lengths": np.array([8], np.int32),
    "half": np.float32(0.5),
    "zp": np.uint8(128),
    "none": np.zeros(0, np.float32),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "ones": np.ones(3, np.float32),
    "start": np.full((1, 1, 1), 0.5, np.float32),
    "still": np.zeros((1, 1, 1), np.float32),
    **{
        name: _RNG.standard_normal(shape).astype(np.float32)
        for name, shape in {
            "first": (1, 2, 1, 3),
            "w": (3, 2),
            "g": (24, 2),
            "bias": (1, 2),
            "stack": (1, 4, 3, 5),
            "kernel": (2, 2, 1, 1),
            "kernel_of_one": (1, 1, 1, 1),
            "lstm_w": (1, 4, 3),
            "lstm_r": (1, 4, 1),
        }.items()
    },
}
_OPENED = {
    "elementwise": "a = Mul(x, first)  y = Relu(a)",
    "flat": "a = Reshape(x, flat)  y = Gemm(a, g, bias)",
    "flatten": "a = Flatten(x)  y = Neg(a)",
    "grouped": """a = Transpose<perm = [1, 0, 2, 3]>(x)  b = Reshape(a, grouped)  c = Neg(b)
        d = Reshape(c, apart)  y = Transpose<perm = [1, 0, 2, 3]>(d)""",
    "merged": """a = Reshape(x, last)  b = MatMul(a, w)  c = Transpose(b)  d = Transpose(c)
        y = Neg(d)""",
    "transposed": "a = Transpose<perm = [2, 0, 1, 3]>(x)  y = Softmax<axis = -1>(a)",
    "product": """a = Transpose<perm = [0, 2, 1, 3]>(x)  b = Transpose<perm = [0, 1, 3, 2]>(a)
        y = MatMul(a, b)""",
    "stack": "a = Transpose<perm = [0, 2, 1, 3]>(x)  y = MatMul(a, stack)",
    "token": "y = Concat<axis = 2>(first, x)",
    "conv": "a = Conv(x, kernel)  b = MaxPool<kernel_shape = [2, 1]>(a)  y = GlobalAveragePool(b)",
    "reduced": "y = ReduceMean<keepdims = 0>(x, two)",
    "squeezed": "a = ReduceMax(x, one)  b = Squeeze(a, one)  y = Unsqueeze(b, two)",
    "sliced": "a = Slice(x, zero, one, zero)  b = Slice(a, one, two, two)  y = Neg(b)",
    "picked": "y = Gather<axis = 1>(x, scalar_one)",
    "padded": "y = Pad(x, border)",
    "expanded": "a = ReduceMax(x, two)  y = Expand(a, whole)",
    "tiled": "y = Tile(x, twice)",
    "split": "y, z = Split<axis = 1, num_outputs = 2>(x)",
    "resized": """y = Resize<mode = "nearest">(x, none, none, larger)""",
    "scaled": """y = Resize<mode = "nearest">(x, none, scales)""",
    "codes": "a = QuantizeLinear(x, half, zp)  y = DequantizeLinear(a, half, zp)",
    "einsum": """y = Einsum<equation = "nchw,wd->nchd">(x, w)""",
    "largest": "a = ArgMax<axis = 1, keepdims = 0>(x)  y = Cast<to = 1>(a)",
    "normalized": "y = LayerNormalization(x, ones)",
    "still": """a = Reshape(x, sequence)  b = Transpose<perm = [1, 0, 2]>(a)
        s, h, y = LSTM<hidden_size = 1>(b, lstm_w, lstm_r, , lengths, still, still)""",
    "started": """a = Reshape(x, sequence)  b = Transpose<perm = [1, 0, 2]>(a)
        y = LSTM<hidden_size = 1>(b, lstm_w, lstm_r, , , start, start)""",
    "sizes": """s = Shape<start = 0, end = 1>(x)  t = Concat<axis = 0>(s, two)
        a = ConstantOfShape(t)  b = Flatten(x)  c = MatMul(b, g)  y = Add(a, c)""",
}
_MIXED = {
    "sum": ("y = ReduceSum(x, zero)", "computes one value of all samples"),
    "everything": ("y = ReduceSum<keepdims = 0>(x)", "computes one value of all samples"),
    "softmax": ("y = Softmax<axis = 0>(x)", "normalizes over the samples"),
    "gram": ("a = Flatten(x)  b = Transpose(a)  y = MatMul(a, b)", "multiplies samples"),
    "beside": ("y = Concat<axis = 0>(x, x)", "beside the samples"),
    "some": ("y = Slice(x, zero, zero, zero)", "takes some of the samples"),
    "one": ("i = Squeeze(zero)  y = Gather<axis = 0>(x, i)", "picks one of the samples"),
    "gone": ("y = Squeeze(x, zero)", "takes away the axis of the samples"),
    "unknown": (
        "a = Transpose<perm = [0, 1, 3, 2]>(x)  b = MatMul(x, a)  y = Det(b)",
        "Det 'y' is not known to keep samples apart",
    ),
    "channels": (
        "a = Transpose<perm = [1, 0, 2, 3]>(x)  y = Conv(a, kernel_of_one)",
        "wants samples along the first axis",
    ),
    "order": (
        "a = Transpose<perm = [1, 0, 2, 3]>(x)  y = Reshape(a, grouped)",
        "'y' does not give one sample after the other",
    ),
}


def _with_constants(body: str, parse: Any) -> ir.Model:
    """``body`` on x, float [1, 2, 4, 3], with the constants that it names."""
    used = [name for name in _CONSTANTS if re.search(rf"\b{name}\b", body)]
    free = ", ".join(["float[1, 2, 4, 3] x", *(f"float {name}" for name in used)])
    model: ir.Model = parse(f"g ({free}) => (float y) {{ {body} }}")
    graph = model.graph
    for value in list(graph.inputs)[1:]:
        array = np.asarray(_CONSTANTS[value.name or ""])
        value.const_value = ir.tensor(array, name=value.name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        graph.inputs.remove(value)
        graph.register_initializer(value)
    graph.outputs[0].shape = None
    x = np.zeros((1, 2, 4, 3), np.float32)
    graph.outputs[0].shape = ir.Shape(Session(model.clone()).run({"x": x})["y"].shape)
    return model


def _dims(value: ir.Value) -> list[int | str]:
    return [dim if isinstance(dim, int) else str(dim) for dim in value.shape or ()]


@pytest.mark.parametrize("name", _OPENED)
def test_samples_at_once_are_samples_one_by_one(name: str, parse: Any, apply_pass: Any) -> None:
    model = _with_constants(_OPENED[name], parse)
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((1, 2, 4, 3)).astype(np.float32) for _ in range(3)]
    before = Session(model.clone())
    one_by_one = [before.run({"x": each})["y"] for each in samples]
    assert apply_pass("dynamic-batch", model).modified
    assert _dims(model.graph.inputs[0]) == ["batch", 2, 4, 3]
    together = Session(model).run({"x": np.concatenate(samples)})["y"]
    dims = _dims(model.graph.outputs[0])
    axis = next(index for index, dim in enumerate(dims) if not isinstance(dim, int))
    np.testing.assert_allclose(together, np.concatenate(one_by_one, axis), rtol=1e-5, atol=1e-5)
    assert not apply_pass("dynamic-batch", model).modified


@pytest.mark.parametrize("name", _MIXED)
def test_what_mixes_samples_is_named(name: str, parse: Any, apply_pass: Any) -> None:
    body, reason = _MIXED[name]
    model = _with_constants(body, parse)
    with pytest.raises(UsageError, match=reason):
        apply_pass("dynamic-batch", model)
    assert _dims(model.graph.inputs[0])[0] == 1


def test_several_inputs_and_a_larger_batch(parse: Any, apply_pass: Any) -> None:
    model = parse("""g (float[2, 6] x, float[3] limits, float[2, 3] z) => (float[2, 3] y)
        <int64[3] parts = {2, 2, 3}, int64[1] one = {1}> {
          a = Reshape(x, parts)
          b = ReduceSum<keepdims = 0>(a, one)
          c = Min(b, limits)
          y = Add(c, z)
        }""")
    original = model.clone()
    apply_pass("dynamic-batch{symbol=n}", model)
    shapes = [[str(dim) for dim in value.shape] for value in model.graph.inputs]
    assert shapes == [["n", "6"], ["3"], ["n", "3"]]
    feed = {
        "x": np.arange(12, dtype=np.float32).reshape(2, 6),
        "limits": np.array([5, 9, 99], np.float32),
        "z": np.ones((2, 3), np.float32),
    }
    assert compare_models(original, model, [feed], Contract.EXACT).verdict.passed


def test_no_batch_and_no_such_input(parse: Any, apply_pass: Any) -> None:
    model = parse("g (float x, float[4] zed) => (float[4] y) { y = Mul(x, zed) }")
    with pytest.raises(UsageError, match="did you mean 'zed'"):
        apply_pass("dynamic-batch{inputs=zedd}", model)
    with pytest.raises(UsageError, match="no batch to leave open"):
        apply_pass("dynamic-batch", parse("g (float x) => (float y) { y = Neg(x) }"))


def test_what_is_open_and_cannot_be_followed_stays(parse: Any, apply_pass: Any) -> None:
    model = parse("g (float[N, 2] x) => (float[1, 2] y) <int64[1] a = {0}> { y = ReduceSum(x, a) }")
    result = apply_pass("dynamic-batch", model)
    assert not result.modified
    assert "one value of all samples" in result.remarks[0].reason
