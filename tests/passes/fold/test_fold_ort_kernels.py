"""Means, Softmax and padding in the integer kernels that are fast in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, Session

CASES: dict[str, tuple[tuple[int, ...], str, str, dict[str, int]]] = {
    "windows": (
        (1, 6, 9, 9),
        "AveragePool",
        "2,2|2,2|",
        {"QLinearConv": 1},
    ),
    "padded windows, padding counted": (
        (2, 5, 8, 8),
        "AveragePool",
        "3,3|1,1|pads,count",
        {"QLinearConv": 1},
    ),
    "padded windows, padding not counted": (
        (2, 5, 8, 8),
        "AveragePool",
        "3,3|1,1|pads",
        {"AveragePool": 1, "Cast": 1, "QuantizeLinear": 1},
    ),
    "ceiling": (
        (1, 5, 7, 7),
        "AveragePool",
        "2,2|2,2|ceil",
        {"AveragePool": 1, "Cast": 1, "QuantizeLinear": 1},
    ),
    "the whole map": (
        (2, 5, 4, 6),
        "AveragePool",
        "4,6|4,6|",
        {"QLinearGlobalAveragePool": 1},
    ),
}


def _attributes(text: str) -> dict[str, Any]:
    kernel, strides, extras = text.split("|")
    attributes: dict[str, Any] = {
        "kernel_shape": [int(size) for size in kernel.split(",")],
        "strides": [int(size) for size in strides.split(",")],
    }
    if "pads" in extras:
        attributes["pads"] = [1, 1, 1, 1]
    if "count" in extras:
        attributes["count_include_pad"] = 1
    if "ceil" in extras:
        attributes["ceil_mode"] = 1
    return attributes


def _worst_steps(model: ir.Model, feed: dict[str, Any], scale: float) -> tuple[float, float]:
    """Largest difference to the original, in steps of the result, and how many differ."""
    before = Session(model.clone()).run(feed)
    FoldQdq().run(model)
    after = Session(model, DEPLOYMENT).run(feed)
    steps: list[Any] = [abs(before[name] - after[name]) / scale for name in before]
    return max(float(e.max()) for e in steps), max(float((e > 0.5).mean()) for e in steps)


def _census(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("case", CASES)
def test_means_over_windows(case: str, fake_quant: Callable[..., Any]) -> None:
    shape, op_type, attributes, expected = CASES[case]
    graph = fake_quant(3)
    x = graph.dequantize(graph.input(shape, ir.DataType.UINT8.value), 0.03, 117)
    y = graph.op(op_type, x, **_attributes(attributes))
    graph.outputs.append(graph.fake(y, 0.02297, 130))
    model = graph.model()
    worst, share = _worst_steps(model, graph.feed(), 0.02297)
    assert worst < 1.5
    assert share < 0.01
    census = _census(model)
    assert {op: census[op] for op in expected} == expected


def test_softmax_is_integer_only_where_it_is_small(fake_quant: Callable[..., Any]) -> None:
    for rows, op_type in ((1, "QLinearSoftmax"), (400, "Softmax")):
        graph = fake_quant(4)
        x = graph.dequantize(graph.input((rows, 12), ir.DataType.UINT8.value), 0.05, 117)
        graph.outputs.append(graph.fake(graph.op("Softmax", x, axis=-1), 1 / 256, 0))
        model = graph.model()
        worst, _ = _worst_steps(model, graph.feed(), 1 / 256)
        assert worst < 1.5
        assert _census(model)[op_type] == 1


PADS = {
    "spatial, zero": ([0, 0, 1, 2, 0, 0, 0, 1], 0.0, 0),
    "with channels": ([0, 1, 1, 2, 0, 0, 0, 1], 0.0, 1),
    "another number": ([0, 0, 1, 2, 0, 0, 0, 1], 0.3, 1),
    "cropped": ([0, 0, -1, 0, 0, 0, 1, 0], 0.0, 1),
}


@pytest.mark.parametrize("case", PADS)
def test_the_convolution_pads_where_it_can(case: str, fake_quant: Callable[..., Any]) -> None:
    pads, number, left = PADS[case]
    graph = fake_quant(5)
    x = graph.dequantize(graph.input((1, 3, 8, 8), ir.DataType.UINT8.value), 0.03, 117)
    amounts = graph.constant(np.array(pads, np.int64))
    padded = graph.op("Pad", x, amounts, graph.constant(np.float32(number)))
    padded = graph.fake(padded, 0.03, 117)
    weights, _ = graph.weights((4, 3 + pads[1], 3, 3), 0)
    convolved = graph.op("Conv", padded, weights, pads=[1, 0, 0, 1])
    graph.outputs.append(graph.fake(convolved, 0.2, 117))
    model = graph.model()
    worst, _ = _worst_steps(model, graph.feed(), 0.2)
    assert worst < 1.5
    assert _census(model)["Pad"] == left
    assert _census(model)["QLinearConv"] == 1
