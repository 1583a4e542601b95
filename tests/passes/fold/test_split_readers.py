"""Convolutions that are quantized in two ways, and those that are read unrounded, for ``ort``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

_BOTH = "a = QuantizeLinear (c, s1, z1) b = QuantizeLinear (c, s2, z2)"
_TWO = "uint8[1,16,6,6] a, int8[1,16,6,6] b"


def _model(
    tail: str = _BOTH,
    outputs: str = _TWO,
    shape: tuple[int, ...] = (16, 4, 3, 3),
    attributes: str = "",
) -> ir.Model:
    channels = shape[1] * (4 if "group" in attributes else 1)
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (uint8[1,{channels},8,8] q) => ({outputs})
    <float sx = {{0.0311}}, uint8 zx = {{120}}, float sw = {{0.0021}}, float s1 = {{0.0731}},
     uint8 z1 = {{120}}, float s2 = {{0.0413}}, int8 z2 = {{-9}}>
    {{
      x = DequantizeLinear (q, sx, zx)
      wf = DequantizeLinear (w, sw)
      c = Conv {attributes} (x, wf, bias)
      {tail}
    }}"""
    model = onnx.parser.parse_model(text)
    numbers = np.random.default_rng(0)
    codes = numbers.integers(-127, 128, shape).astype(np.int8)
    bias = numbers.standard_normal(shape[0]).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(codes, "w"))
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def _fold(model: ir.Model) -> tuple[ir.Model, Counter[str]]:
    folded = Pipeline(parse_passes(folding("ort"))).run(model).model
    return folded, Counter(node.op_type for node in folded.graph)


def _check_numbers(before: ir.Model, after: ir.Model) -> None:
    numbers, wrong, total = np.random.default_rng(1), 0.0, 0
    shape = before.graph.inputs[0].shape
    assert shape is not None
    for config in (REFERENCE, DEPLOYMENT):
        sessions = Session(before, REFERENCE), Session(after, config)
        for _ in range(5):
            feed = {"q": numbers.integers(0, 256, shape.numpy()).astype(np.uint8)}
            wanted, found = (each.run(feed) for each in sessions)
            for name, array in wanted.items():
                apart = np.abs(array.astype(np.float64) - found[name])
                if array.dtype == np.float32:
                    assert np.max(apart) <= 1e-5 * np.max(np.abs(array))
                    continue
                assert np.max(apart) <= 1
                wrong, total = wrong + np.sum(apart), total + apart.size
    assert wrong <= 2e-3 * total, "a float bias is rounded for each of them"


def test_each_type_has_a_convolution_of_its_own(
    apply_pass: Callable[..., PassResult], text_of: Callable[[ir.Model], str]
) -> None:
    model = _model()
    result = apply_pass("split-readers", model)
    assert result.rules == {"split-readers": 1}
    text = text_of(model)
    assert "c = Conv (x, wf, bias)" in text
    assert "c_again = Conv (x, wf, bias)" in text
    assert "a = QuantizeLinear (c, s1, z1)" in text
    assert "b = QuantizeLinear (c_again, s2, z2)" in text
    assert not apply_pass("split-readers", model).rules


@pytest.mark.parametrize(
    "tail", [_BOTH, f"r = Relu (c) d = Relu (c) {_BOTH.replace('(c', '(r', 1).replace('(c', '(d')}"]
)
def test_both_become_integers(tail: str) -> None:
    folded, census = _fold(_model(tail))
    assert census["QLinearConv"] == 2
    assert not census["Conv"]
    _check_numbers(_model(tail), folded)


@pytest.mark.parametrize(
    "model",
    [
        _model(f"{_BOTH} e = Erf (c)", f"{_TWO}, float[1,16,6,6] e"),
        _model(_BOTH, f"{_TWO}, float[1,16,6,6] c"),
        _model(_BOTH.replace("s2, z2", "s1, z1"), _TWO.replace(", int8", ", uint8")),
        _model(shape=(8, 4, 3, 3), outputs=_TWO.replace("16", "8")),
        _model(shape=(16, 1, 3, 3), attributes="<group = 4>"),
    ],
    ids=["a real reader", "a real output", "one type", "few channels", "groups"],
)  # fmt: skip
def test_one_convolution_is_enough(model: ir.Model, apply_pass: Callable[..., PassResult]) -> None:
    assert not apply_pass("split-readers", model).rules


@pytest.mark.parametrize("tail", ["", "e = Erf (c)"])
def test_pointwise_convolutions_leave_real_numbers_on_integer_kernels(tail: str) -> None:
    outputs = f"float[1,64,8,8] {'e' if tail else 'c'}"
    folded, census = _fold(_model(tail, outputs, (64, 64, 1, 1)))
    assert census["ConvInteger"] == 1
    assert not census["Conv"]
    _check_numbers(_model(tail, outputs, (64, 64, 1, 1)), folded)


@pytest.mark.parametrize(
    ("tail", "shape"),
    [("", (64, 64, 3, 3)), ("", (64, 32, 1, 1)), ("c_ = LeakyRelu (c)", (64, 64, 1, 1))],
    ids=["three taps", "few channels", "an activation that it takes in"],
)
def test_others_stay_float_with_the_reason(tail: str, shape: tuple[int, ...]) -> None:
    size = 9 - shape[2]
    outputs = f"float[1,64,{size},{size}] {'c_' if tail else 'c'}"
    done = Pipeline(parse_passes(folding("ort"))).run(_model(tail, outputs, shape))
    assert "Conv" in {node.op_type for node in done.model.graph}
    remarks = [remark for _, result in done.results for remark in result.remarks]
    assert any("gains little or nothing here (measured)" in each.reason for each in remarks)
