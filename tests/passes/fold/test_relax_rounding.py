"""Leaving out the rounding of activations: what goes, what stays, and how near the result is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.relax_rounding import RelaxRounding
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, Session

_GRID = "float s = {0.05}, uint8 z = {100}, float s2 = {0.06}"


def _text(body: str, output: str = "float[1,2,4,4] y") -> str:
    return f"agraph (float[1,2,4,4] f) => ({output}) <{_GRID}> {{ {body} }}"


def _census(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


REMOVED = {
    "at an input, unlimited": (
        "q = QuantizeLinear (f, s, z) x = DequantizeLinear (q, s, z) y = Neg (x)",
        {"Neg": 1},
    ),
    "behind an op": (
        "a = Neg (f) q = QuantizeLinear (a, s, z) x = DequantizeLinear (q, s, z) y = Neg (x)",
        {"Neg": 2, "Clip": 1},
    ),
    "with a Relu": (
        "a = Relu (f) q = QuantizeLinear (a, s, z) x = DequantizeLinear (q, s, z) y = Neg (x)",
        {"Relu": 1, "Neg": 1, "Clip": 1},
    ),
    "behind limits of its own": (
        "a = Sigmoid (f) q = QuantizeLinear (a, s, z) x = DequantizeLinear (q, s, z) y = Neg (x)",
        {"Sigmoid": 1, "Neg": 1},
    ),
    "twice alike": (
        "a = Neg (f) q = QuantizeLinear (a, s, z) x = DequantizeLinear (q, s, z)"
        " b = MaxPool <kernel_shape = [1, 1]> (x) r = QuantizeLinear (b, s, z)"
        " w = DequantizeLinear (r, s, z) y = Neg (w)",
        {"Neg": 2, "Clip": 1, "MaxPool": 1},
    ),
    "around a Transpose of codes": (
        "a = Neg (f) q = QuantizeLinear (a, s, z) t = Transpose <perm = [0, 1, 3, 2]> (q)"
        " x = DequantizeLinear (t, s, z) y = Neg (x)",
        {"Neg": 2, "Clip": 1, "Transpose": 1},
    ),
}

KEPT = {
    "other parameters": (
        "q = QuantizeLinear (f, s, z) y = DequantizeLinear (q, s2, z)",
        "float[1,2,4,4] y",
    ),
    "codes that go out": (
        "q = QuantizeLinear (f, s, z) y = DequantizeLinear (q, s, z)",
        "float[1,2,4,4] y, uint8[1,2,4,4] q",
    ),
    "codes that something else reads": (
        "q = QuantizeLinear (f, s, z) x = DequantizeLinear (q, s, z)"
        " c = Cast <to = 1> (q) y = Add (x, c)",
        "float[1,2,4,4] y",
    ),
}


@pytest.mark.parametrize("case", REMOVED)
def test_pairs_go_and_limits_stay(case: str, parse: Callable[..., ir.Model]) -> None:
    body, expected = REMOVED[case]
    model = parse(_text(body))
    numbers = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    # Out of range on both sides, but for the case without limits.
    feed = {"f": numbers * (1.0 if "unlimited" in case else 20.0)}
    before = Session(model).run(feed)["y"]
    RelaxRounding().run(model)
    census = _census(model)
    assert census == expected
    assert float(np.abs(Session(model).run(feed)["y"] - before).max()) <= 0.0251


@pytest.mark.parametrize("case", KEPT)
def test_what_is_read_otherwise_stays(case: str, parse: Callable[..., ir.Model]) -> None:
    body, output = KEPT[case]
    model = parse(_text(body, output))
    result = RelaxRounding().run(model)
    assert not result.modified


def test_limits_can_be_dropped(parse: Callable[..., ir.Model]) -> None:
    model = parse(_text(REMOVED["behind an op"][0]))
    RelaxRounding(limits="drop").run(model)
    assert _census(model) == {"Neg": 2}


def test_weights_are_dequantized_ahead_of_time(fake_quant: Callable[..., Any]) -> None:
    graph = fake_quant(1)
    x = graph.fake(graph.input((1, 3, 8, 8)), 0.03, 120)
    weights, scale = graph.weights((4, 3, 3, 3), 0)
    bias = graph.bias(4, scale * np.float32(0.03))
    y = graph.op("Relu", graph.op("Conv", x, weights, bias))
    graph.outputs.append(graph.fake(y, 0.05, 0))
    model = graph.model()
    before: Any = next(iter(Session(model).run(graph.feed()).values()))
    relaxed = Pipeline(parse_passes(folding("ort", relax="keep"))).run(model).model
    assert _census(relaxed) == {"Conv": 1, "Clip": 1}
    after: Any = next(iter(Session(relaxed, DEPLOYMENT).run(graph.feed()).values()))
    error = float(((after - before) ** 2).mean() ** 0.5)
    assert 0 < error < 0.05
