"""Layers on float kernels: which go there, that their codes are the same, and what keeps them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.costs import FAMILIES
from onnxfold.passes.fold.default_costs import DEFAULT_COSTS
from onnxfold.passes.fold.fold_qdq import NO_COSTS, FoldQdq
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, Session

_CHEAP, _DEAR = 1.0, 1000.0


def _table(path: Path, **dear: bool) -> str:
    """A table in which all kernels cost 1, but those of the families named (words joined by _)."""
    data = DEFAULT_COSTS.to_json()
    for family, features in FAMILIES.items():
        cost = _DEAR if dear.get(family.replace("ragged ", "").replace(" ", "_")) else _CHEAP
        data["microseconds"][family] = {
            name: cost if name == "constant" else 0.0 for name in features
        }
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


@pytest.fixture
def dear(tmp_path: Path) -> Callable[..., str]:
    """``dear("integer convolution", ...)``: a file of costs in which these are dear."""

    def make(*families: str) -> str:
        flags = {family.replace(" ", "_"): True for family in families}
        return _table(tmp_path / "costs.json", **flags)

    return make


def _net(graph: Any, *, pool: bool = False, second: bool = False, dtype: str = "uint8") -> ir.Model:
    """One or two convolutions with Relu, maybe MaxPool between; codes go in and out."""
    zero, low = (120, 0) if dtype == "uint8" else (-8, -128)
    kind = ir.DataType.UINT8 if dtype == "uint8" else ir.DataType.INT8
    codes = graph.input((1, 3, 12, 12), kind.value)
    value = graph.dequantize(codes, 0.03, zero, dtype)
    channels = 3
    for outputs in (8, 5)[: 2 if second else 1]:
        weights, scale = graph.weights((outputs, channels, 3, 3), 0)
        bias = graph.bias(outputs, scale * np.float32(0.03 if channels == 3 else 0.05))
        value = graph.op("Conv", value, weights, bias, pads=[1, 1, 1, 1])
        value = graph.fake(graph.op("Relu", value), 0.05, low, dtype)
        if pool and channels == 3:
            value = graph.op("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
            value = graph.fake(value, 0.05, low, dtype)
        channels = outputs
    graph.outputs.append(value)
    return graph.model()


def _census(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def _fold(model: ir.Model, costs: str) -> ir.Model:
    FoldQdq(costs=costs).run(model)
    return model


NETS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "one layer, int8": {"dtype": "int8"},
    "with MaxPool": {"pool": True},
    "two layers": {"second": True},
    "two layers, MaxPool, int8": {"second": True, "pool": True, "dtype": "int8"},
}


@pytest.mark.parametrize("case", NETS)
def test_float_kernels_give_the_same_codes(
    case: str, fake_quant: Callable[..., Any], dear: Callable[..., str]
) -> None:
    graph = fake_quant(2)
    model = _net(graph, **NETS[case])
    folded = _fold(model.clone(), dear("integer convolution"))
    assert not _census(folded)["QLinearConv"]
    wanted: Any = np.concatenate(
        [next(iter(Session(model).run(graph.feed(seed)).values())).ravel() for seed in range(4)]
    )
    for config in (None, DEPLOYMENT):
        session = Session(folded) if config is None else Session(folded, config)
        found: Any = np.concatenate(
            [next(iter(session.run(graph.feed(seed)).values())).ravel() for seed in range(4)]
        )
        steps: Any = np.rint((found - wanted) / 0.05)
        assert float(abs(steps).max()) <= 1
        assert float((steps != 0).mean()) <= 1e-3


def test_layers_stay_integer_where_that_is_cheaper(
    fake_quant: Callable[..., Any], dear: Callable[..., str]
) -> None:
    for costs in (dear("float convolution"), dear("float to codes"), NO_COSTS):
        census = _census(_fold(_net(fake_quant(2), second=True), costs))
        assert census["QLinearConv"] == 2
        assert not census["Conv"]


def test_between_two_float_kernels_nothing_becomes_codes(
    fake_quant: Callable[..., Any], dear: Callable[..., str]
) -> None:
    census = _census(_fold(_net(fake_quant(2), second=True), dear("integer convolution")))
    assert census == {"Cast": 1, "Sub": 1, "Conv": 2, "Clip": 1, "Round": 1,
                      "QuantizeLinear": 1, "DequantizeLinear": 1}  # fmt: skip


def test_int8_codes_are_not_shifted_for_a_float_kernel(
    fake_quant: Callable[..., Any], dear: Callable[..., str]
) -> None:
    folded = _fold(_net(fake_quant(2), dtype="int8"), dear("integer convolution"))
    first = folded.graph.inputs[0].consumers()
    assert [node.op_type for node in first] == ["Cast"]


def test_a_layer_read_twice_gives_codes_once(
    fake_quant: Callable[..., Any], dear: Callable[..., str]
) -> None:
    graph = fake_quant(3)
    _net(graph)
    value = graph.outputs.pop()
    for _ in range(2):
        weights, _ = graph.weights((4, 8, 1, 1), 0)
        graph.outputs.append(graph.fake(graph.op("Conv", value, weights), 0.2, 100))
    folded = _fold(graph.model(), dear("integer convolution"))
    census = _census(folded)
    assert (census["Conv"], census["Round"], census["QuantizeLinear"]) == (3, 1, 2)


def test_onnxruntime_leaves_the_float_kernels_alone(
    fake_quant: Callable[..., Any], dear: Callable[..., str]
) -> None:
    """It would move a QuantizeLinear before the MaxPool, whose integer kernel is slow."""
    folded = _fold(_net(fake_quant(2), pool=True), dear("integer convolution"))
    executed = optimized_op_census(ir.to_proto(folded))
    assert not {name for name in executed if name.startswith("QLinear")}
    order = [node.op_type for node in folded.graph]
    assert order.index("MaxPool") < order.index("QuantizeLinear")
    assert executed.get("QuantizeLinear") == 1


def test_the_tree_is_solved_as_a_whole(
    fake_quant: Callable[..., Any], dear: Callable[..., str]
) -> None:
    """A dear way back to codes keeps the second layer in float, too, though it gains nothing."""
    costs = dear("integer convolution", "float to codes", "integer max pool")
    census = _census(_fold(_net(fake_quant(2), pool=True, second=True), costs))
    assert (census["Conv"], census["QLinearConv"]) == (2, 0)


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match=r"missing\.json: cannot read the table of costs"):
        FoldQdq(costs="missing.json").run(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
