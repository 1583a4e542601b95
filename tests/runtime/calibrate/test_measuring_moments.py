"""Measured input moments: they predict what ONNX Runtime computes, to the same bits every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.weight_rows import WeightRows
from onnxfold.runtime.calibrate import input_moments
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.calibrate.input_moments import measure_input_moments
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Parse = Callable[..., ir.Model]


def _numbers(count: int) -> str:
    values = np.random.default_rng(count).normal(size=count)
    return ", ".join(f"{value:.5f}" for value in values)


CASES = {
    "conv": ("Conv<pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]>(x, w)", 4, (6, 4)),
    "grouped": ("Conv<group = 2, pads = [1, 1, 1, 1]>(x, w)", 4, (6, 2)),
    "depthwise": ("Conv<group = 4>(x, w)", 4, (8, 1)),
    "upper": ('Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', 4, (6, 4)),
    "lower": ('Conv<auto_pad = "SAME_LOWER", strides = [2, 3]>(x, w)', 4, (6, 4)),
    "valid": ('Conv<auto_pad = "VALID">(x, w)', 4, (6, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_moments_of_patches_predict_the_mean_square(name: str, parse: Parse) -> None:
    call, channels, (first, second) = CASES[name]
    kernel = (3, 2)
    shape = (first, second, *kernel)
    model = parse(
        f"""g (float[N,{channels},9,8] x) => (float[N,{first},P,Q] y)
        <float[{first},{second},3,2] w = {{{_numbers(first * second * 6)}}}> {{ y = {call} }}"""
    )
    _check(model, shape, [(2, channels, 9, 8)] * 3, axis=1)


MATRICES = {
    "matmul": ("MatMul(x, w)", "N,T,5", "N,T,4", (5, 4), (2, 3, 5)),
    "gemm": ("Gemm(x, w)", "N,5", "N,4", (5, 4), (7, 5)),
    "gemm_transposed": ("Gemm<transA = 1, transB = 1>(x, w)", "5,N", "N,4", (4, 5), (5, 7)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_moments_of_rows_predict_the_mean_square(name: str, parse: Parse) -> None:
    call, data, result, shape, feed = MATRICES[name]
    model = parse(
        f"""g (float[{data}] x) => (float[{result}] y)
        <float[{shape[0]},{shape[1]}] w = {{{_numbers(20)}}}> {{ y = {call} }}"""
    )
    _check(model, shape, [feed] * 4, axis=-1)


def _check(
    model: ir.Model, shape: tuple[int, ...], feeds: list[tuple[int, ...]], axis: int
) -> None:
    """E[y^2] and E[y] of each output channel, from the moments and from ONNX Runtime."""
    rng = np.random.default_rng(0)
    data = [{"x": (rng.normal(size=each) + 0.3).astype(np.float32)} for each in feeds]
    node = next(iter(model.graph))
    moments = measure_input_moments(model, None, data)
    (layer,) = moments.values()
    layout = WeightRows.match(node, shape)
    assert layout is not None
    rows = layout.to_rows(layer.weights.astype(np.float64))
    assert np.array_equal(layout.from_rows(rows), layer.weights)
    session = Session(model, REFERENCE)
    outputs = [np.moveaxis(session.run(feed)["y"], axis, 0) for feed in data]
    values = np.concatenate([each.reshape(len(each), -1) for each in outputs], axis=1)
    assert layer.count == values.shape[1]
    square = np.einsum("gok,gkl,gol->go", rows, layer.second, rows).reshape(-1)
    np.testing.assert_allclose(square, np.square(values).mean(axis=1), rtol=1e-3)
    mean = np.einsum("gok,gk->go", rows, layer.mean).reshape(-1)
    np.testing.assert_allclose(mean, values.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(layer.diagonal, np.einsum("gkk->gk", layer.second), rtol=1e-12)


def _conv(parse: Parse, body: str = "y = Conv(x, w)") -> ir.Model:
    return parse(
        f"""g (float[N,2,6] x) => (float[N,3,P] y)
        <float[3,2,3] w = {{{_numbers(18)}}}, float[3,3,1] v = {{{_numbers(9)}}}> {{ {body} }}"""
    )


def _feeds(count: int, scale: float = 1.0) -> list[Feed]:
    rng = np.random.default_rng(7)
    sizes = scale * 40.0 ** np.arange(count)
    return [{"x": (rng.normal(size=(2, 2, 6)) * size).astype(np.float32)} for size in sizes]


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_merge_to_the_bits_of_all_data(shards: int, parse: Parse) -> None:
    model, feeds = _conv(parse), _feeds(5)
    whole = measure_input_moments(model, None, feeds)
    parts = [measure_input_moments(model, None, feeds[i::shards]) for i in range(shards)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged == whole
    assert measure_input_moments(model, None, feeds[::-1]) == whole


def test_values_are_kept_to_many_digits_whatever_their_size(parse: Parse) -> None:
    model = _conv(parse)
    for scale in (1e-20, 1.0, 1e15):
        (found,) = measure_input_moments(model, None, _feeds(1, scale)).values()
        (unit,) = measure_input_moments(model, None, _feeds(1)).values()
        np.testing.assert_allclose(found.second / scale**2, unit.second, rtol=1e-3, atol=1e-4)


def test_zeros_and_empty_data_count(parse: Parse) -> None:
    model = _conv(parse)
    feeds = [{"x": np.zeros((2, 2, 6), np.float32)}, {"x": np.zeros((0, 2, 6), np.float32)}]
    (layer,) = measure_input_moments(model, None, feeds).values()
    assert layer.count == 8
    assert not np.any(layer.second)


def test_rows_bound_what_a_feed_contributes(parse: Parse) -> None:
    (layer,) = measure_input_moments(_conv(parse), None, _feeds(3), rows=5).values()
    assert layer.count == 15


def test_of_wide_layers_the_diagonal_is_kept(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    (full,) = measure_input_moments(_conv(parse), None, _feeds(2)).values()
    monkeypatch.setattr(input_moments, "WIDEST", 5)
    (narrow,) = measure_input_moments(_conv(parse), None, _feeds(2)).values()
    assert not narrow.full
    assert np.array_equal(narrow.second, full.diagonal)


def test_layers_are_chosen_by_name(parse: Parse) -> None:
    model = _conv(parse, "c = Conv(x, w) r = Relu(c) y = Conv(r, v)")
    assert list(measure_input_moments(model, ["y"], _feeds(1))) == ["y"]
    assert list(measure_input_moments(model, None, _feeds(1))) == ["c", "y"]
    assert not measure_input_moments(model, ["r"], _feeds(1))
    with pytest.raises(UsageError, match="no node 'z'"):
        measure_input_moments(model, ["z"], _feeds(1))


def test_inputs_as_the_quantized_graph_sees_them(parse: Parse) -> None:
    model = _conv(parse, "c = Conv(x, w) r = Relu(c) y = Conv(r, v)")
    feeds = [{"x": np.random.default_rng(1).normal(size=(2, 2, 6)).astype(np.float32)}]
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    quantized = model.clone()
    InsertQdq(ranges).run(quantized)
    exact = measure_input_moments(model, None, feeds)
    found = measure_input_moments(model, None, feeds, quantized=quantized)
    named = {node_name(node) for node in quantized.graph}
    assert len(found) == len(exact)
    assert named.issuperset(found)
    for new, old in zip(found.values(), exact.values(), strict=True):
        assert np.array_equal(new.weights, old.weights)
        assert not np.array_equal(new.second, old.second)
        np.testing.assert_allclose(new.second, old.second, atol=0.05)


def test_what_is_not_a_number_is_refused(parse: Parse) -> None:
    feeds = _feeds(2)
    feeds[1]["x"][0, 0, 0] = np.nan
    with pytest.raises(InvalidModelError, match=r"'x' has NaN or infinite values.* sample 1"):
        measure_input_moments(_conv(parse), None, feeds)
    with pytest.raises(UsageError, match="empty"):
        measure_input_moments(_conv(parse), None, [])
