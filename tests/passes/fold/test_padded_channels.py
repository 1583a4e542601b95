"""Channels that nobody sees are padded where that is faster, and no number changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold import fold_qdq
from onnxfold.passes.fold.costs import CostTable
from onnxfold.passes.fold.fold_qdq import NO_COSTS, FoldQdq
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.verify.region_gate import check_integer_contract


def _leave(plan: Plan, rewriter: Rewriter, costs: CostTable) -> None:
    """In place of a step that pads, or makes blocks of pixels."""
    del plan, rewriter, costs


@pytest.fixture(autouse=True)
def pixels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No blocks of pixels, with which few channels are faster."""
    monkeypatch.setattr(fold_qdq, "merge_pixels", _leave)


def _layer(
    graph: Any,
    x: str,
    channels: tuple[int, int],
    kernel: int = 1,
    group: int = 1,
    step: float = 0.1,
) -> str:
    """A convolution of data in steps of ``step``, "same" padding, rounded to 8 bits."""
    inputs, outputs = channels
    weights, scale = graph.weights((outputs, inputs // group, kernel, kernel), 0)
    bias = graph.bias(outputs, scale * np.float32(step))
    product = graph.op("Conv", x, weights, bias, pads=[kernel // 2] * 4, group=group)
    return graph.fake(product, 0.1, 100)


def _depthwise(graph: Any, channels: int, *, seen: bool = False) -> ir.Model:
    """A wide convolution, one for each channel, and a wide one again."""
    codes = graph.input((1, 16, 12, 12), ir.DataType.UINT8.value)
    x = graph.dequantize(codes, 0.1, 120)
    first = _layer(graph, x, (16, channels))
    second = _layer(graph, first, (channels, channels), 3, channels)
    graph.outputs.append(_layer(graph, second, (channels, 16)))
    if seen:
        graph.outputs.append(first)
    return graph.model()


def _residual(graph: Any) -> ir.Model:
    """Two convolutions of 8 channels, added; Clip and MaxPool behind them."""
    codes = graph.input((1, 16, 40, 40), ir.DataType.UINT8.value)
    x = graph.dequantize(codes, 0.1, 120)
    first = _layer(graph, x, (16, 8), 3)
    second = _layer(graph, first, (8, 8), 3)
    total = graph.fake(graph.op("Add", first, second), 0.2, 90)
    limits = graph.constant(np.float32(-7.0)), graph.constant(np.float32(9.0))
    total = graph.fake(graph.op("Clip", total, *limits), 0.2, 90)
    pooled = graph.op("MaxPool", total, kernel_shape=[2, 2], strides=[2, 2])
    graph.outputs.append(_layer(graph, pooled, (8, 24), 3, step=0.2))
    return graph.model()


def _weights(model: ir.Model) -> list[tuple[int, ...]]:
    """The shapes of the weights of all integer convolutions."""
    found = [
        constant_array(node.inputs[3]) for node in model.graph if node.op_type == "QLinearConv"
    ]
    return [each.shape for each in found if each is not None]


def _fold(model: ir.Model) -> ir.Model:
    folded = model.clone()
    FoldQdq(costs=NO_COSTS).run(folded)
    return folded


@pytest.mark.parametrize(("channels", "padded"), [(24, 32), (40, 48), (12, 16), (8, 16)])
def test_depthwise_channels_are_padded_on_both_sides(
    channels: int, padded: int, fake_quant: Callable[..., Any]
) -> None:
    folded = _fold(_depthwise(fake_quant(), channels))
    assert _weights(folded) == [(padded, 16, 1, 1), (padded, 1, 3, 3), (16, padded, 1, 1)]
    depthwise = [node for node in folded.graph if node.attributes.get_int("group", 1) > 1]
    assert [node.attributes.get_int("group", 1) for node in depthwise] == [padded]


@pytest.mark.parametrize("channels", [16, 32])
def test_whole_blocks_stay(channels: int, fake_quant: Callable[..., Any]) -> None:
    folded = _fold(_depthwise(fake_quant(), channels))
    assert _weights(folded)[1] == (channels, 1, 3, 3)


def test_channels_that_are_seen_stay(fake_quant: Callable[..., Any]) -> None:
    folded = _fold(_depthwise(fake_quant(), 24, seen=True))
    assert _weights(folded)[0] == (24, 16, 1, 1)


def test_sums_limits_and_pools_carry_more_channels(fake_quant: Callable[..., Any]) -> None:
    folded = _fold(_residual(fake_quant()))
    assert _weights(folded) == [(16, 16, 3, 3), (16, 16, 3, 3), (24, 16, 3, 3)]
    census = Counter(node.op_type for node in folded.graph)
    assert census["Clip"] == census["MaxPool"] == census["QLinearAdd"] == 1


@pytest.mark.parametrize("residual", [True, False])
def test_no_number_changes(
    residual: bool,
    fake_quant: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = fake_quant(3)
    model = _residual(graph) if residual else _depthwise(graph, 24)
    padded, feed = _fold(model), graph.feed()
    for name in ("pad_channels", "add_edge_channels"):
        monkeypatch.setattr(fold_qdq, name, _leave)
    plain = _fold(model)
    assert _weights(plain) != _weights(padded)
    for config in (REFERENCE, DEPLOYMENT):
        wanted, found = Session(plain, config).run(feed), Session(padded, config).run(feed)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)


def test_values_with_more_channels_are_compared_by_those_of_the_original(
    fake_quant: Callable[..., Any],
) -> None:
    graph = fake_quant(1)
    model = _residual(graph)
    folded = Pipeline(parse_passes(f"fold-qdq{{costs={NO_COSTS}}},infer-shapes")).run(model.clone())
    padded = [v.name or "" for node in folded.model.graph for v in node.outputs]
    assert any(name.endswith("_padded") for name in padded)
    evidence = check_integer_contract(model, folded.model, [graph.feed(i) for i in range(2)])
    assert evidence.regions == evidence.checked >= 5
    assert evidence.reasons == ()


def test_a_wrong_weight_of_padded_channels_is_found(fake_quant: Callable[..., Any]) -> None:
    graph = fake_quant(1)
    model = _depthwise(graph, 24)
    folded = _fold(model)
    node = next(each for each in folded.graph if each.attributes.get_int("group", 1) > 1)
    codes = constant_array(node.inputs[3])
    assert codes is not None
    assert node.inputs[3] is not None
    wrong: npt.NDArray[np.int8] = codes.astype(np.int8)
    wrong[5] += 7
    node.inputs[3].const_value = ir.tensor(wrong)
    evidence = check_integer_contract(model, folded, [graph.feed()])
    assert evidence.mismatches > 0
    assert evidence.reasons
