"""Channels are added where integer convolutions read or write too few, if that is faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold import fold_qdq
from onnxfold.passes.fold.costs import CostTable
from onnxfold.passes.fold.fold_qdq import NO_COSTS, FoldQdq
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.verify.region_gate import check_integer_contract


def _layer(
    graph: Any,
    channels: tuple[int, int],
    size: int,
    *,
    turned: bool = False,
    batch: int = 1,
    output: bool = False,
) -> ir.Model:
    """One 3x3 convolution with zero point 0 weights; codes go in, and codes or numbers out."""
    inputs, outputs = channels
    shape = (batch, size, size, inputs) if turned else (batch, inputs, size, size)
    codes = graph.input(shape, ir.DataType.UINT8.value)
    x = graph.dequantize(codes, 0.1, 120)
    if turned:
        x = graph.op("Transpose", x, perm=[0, 3, 1, 2])
    weights, scale = graph.weights((outputs, inputs, 3, 3), 0)
    bias = graph.bias(outputs, scale * np.float32(0.1))
    product = graph.op("Conv", x, weights, bias, pads=[1, 1, 1, 1])
    rounded = graph.quantize(product, 0.3, 100)
    graph.outputs.append(rounded if output else graph.dequantize(rounded, 0.3, 100))
    return graph.model()


def _leave(plan: Plan, rewriter: Rewriter, costs: CostTable) -> None:
    """In place of what makes blocks of pixels."""
    del plan, rewriter, costs


@pytest.fixture(autouse=True)
def pixels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No blocks of pixels, with which few channels are faster."""
    monkeypatch.setattr(fold_qdq, "merge_pixels", _leave)


def _fold(model: ir.Model) -> Counter[str]:
    FoldQdq(costs=NO_COSTS).run(model)
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    ("channels", "size", "turned", "pads", "slices"),
    [
        ((3, 32), 24, False, 1, 0),
        ((1, 16), 24, False, 1, 0),
        ((3, 8), 24, False, 1, 1),
        ((16, 8), 24, False, 0, 1),
        ((16, 16), 24, False, 0, 0),
        ((3, 32), 24, True, 0, 0),
        ((3, 32), 4, False, 0, 0),
        ((16, 8), 4, False, 0, 0),
    ],
)
def test_channels_are_added_where_it_pays(
    channels: tuple[int, int],
    size: int,
    turned: bool,
    pads: int,
    slices: int,
    fake_quant: Callable[..., Any],
) -> None:
    census = _fold(_layer(fake_quant(), channels, size, turned=turned))
    assert (census["Pad"], census["Slice"]) == (pads, slices)


@pytest.mark.parametrize("outputs", [1, 8])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("output", [False, True])
def test_no_number_changes(
    outputs: int, batch: int, output: bool, fake_quant: Callable[..., Any]
) -> None:
    graph = fake_quant(2)
    model = _layer(graph, (3, outputs), 24, batch=batch, output=output)
    folded, feed = model.clone(), graph.feed()
    assert _fold(folded)["Slice"] == 1
    [wanted] = Session(model, REFERENCE).run(feed).values()
    for config in (REFERENCE, DEPLOYMENT):
        [found] = Session(folded, config).run(feed).values()
        np.testing.assert_array_equal(found, wanted)
    evidence = check_integer_contract(model, folded, [feed])
    assert evidence.reasons == ()
    assert evidence.checked == evidence.regions >= 1


def test_data_that_several_convolutions_read_are_padded_once(
    fake_quant: Callable[..., Any],
) -> None:
    graph = fake_quant()
    codes = graph.input((1, 3, 24, 24), ir.DataType.UINT8.value)
    x = graph.dequantize(codes, 0.1, 120)
    for _ in range(2):
        weights, _ = graph.weights((16, 3, 3, 3), 0)
        product = graph.op("Conv", x, weights, pads=[1, 1, 1, 1])
        graph.outputs.append(graph.fake(product, 0.3, 100))
    census = _fold(graph.model())
    assert (census["Pad"], census["QLinearConv"]) == (1, 2)
