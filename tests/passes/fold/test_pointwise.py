"""Products of many rows as channels-last convolutions: which, and the same codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.macs import node_macs
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig


@dataclass(frozen=True)
class _Case:
    shape: tuple[str | int, ...] = ("B", "S", 64)
    channels: int = 64
    bias: bool = True
    kind: type[np.generic] = np.uint8


def _model(case: _Case) -> ir.Model:
    """DequantizeLinear, MatMul, Add, QuantizeLinear."""
    random = np.random.default_rng(0)
    depth = int(case.shape[-1])
    weights = random.integers(-127, 128, (depth, case.channels)).astype(np.int8)
    constants = {
        "s": np.float32(0.02),
        "z": np.asarray(3, case.kind),
        "w": weights,
        "t": random.uniform(0.002, 0.004, case.channels).astype(np.float32),
        "b": random.normal(size=case.channels).astype(np.float32),
        "o": np.float32(0.05),
        "p": np.asarray(100, case.kind),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["w", "t"], ["v"], axis=1),
        helper.make_node("MatMul", ["r", "v"], ["m"]),
        helper.make_node("Add" if case.bias else "Identity", ["m", "b"][: 1 + case.bias], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "o", "p"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(case.kind))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, case.shape)],
        [helper.make_tensor_value_info("y", kind, (*case.shape[:-1], case.channels))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    assert kind in (TensorProto.UINT8, TensorProto.INT8)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.serde.deserialize_model(proto)


def _folded(case: _Case) -> ir.Model:
    return Pipeline(parse_passes(folding("ort", costs="none"))).run(_model(case)).model


def _convolutions(model: ir.Model) -> list[ir.Node]:
    return [each for each in model.graph if each.op_type == "QLinearConv"]


@pytest.mark.parametrize("shape", [("B", "S", 64), (1, 32, 64), ("A", "B", "C", 64)])
@pytest.mark.parametrize("config", [REFERENCE, DEPLOYMENT], ids=["optimized-off", "optimized-on"])
def test_codes_are_those_of_the_product(
    shape: tuple[str | int, ...], config: SessionConfig
) -> None:
    case = _Case(shape)
    model = _folded(case)
    (node,) = _convolutions(model)
    assert (node.domain, node.attributes.get_int("channels_last", 0)) == ("com.microsoft", 1)
    assert len(list(model.graph)) == 1
    sizes = {"A": 2, "B": 3, "C": 5, "S": 17}
    drawn = [sizes[each] if isinstance(each, str) else each for each in shape]
    feed = {"x": np.random.default_rng(1).integers(0, 256, drawn).astype(np.uint8)}
    wanted = Session(_model(case), REFERENCE).run(feed)["y"].astype(np.int64)
    got = Session(model, config).run(feed)["y"].astype(np.int64)
    assert np.ptp(wanted) > 200
    assert np.max(np.abs(got - wanted)) <= 1
    assert np.mean(got != wanted) < 1e-3


@pytest.mark.parametrize(
    "case",
    [
        _Case(bias=False),
        _Case(("B", "S", 63)),
        _Case((1, 8, 64)),
        _Case(("B", 64)),
    ],
    ids=["no-bias", "few-weights", "few-rows", "matrix"],
)
def test_others_stay_products(case: _Case) -> None:
    assert not _convolutions(_folded(case))


def test_its_work_is_counted() -> None:
    (node,) = _convolutions(_folded(_Case((1, 32, 64))))
    assert node_macs(node) == 32 * 64 * 64


@pytest.mark.parametrize("target", ["ort", "standard", "qdq"])
@pytest.mark.parametrize("shape", [("B", "S", 64), (1, 4, 8, 64)])
def test_folded_again_it_is_the_product_it_was(shape: tuple[str | int, ...], target: str) -> None:
    first = _folded(_Case(shape))
    assert len(_convolutions(first)) == 1
    again = ir.from_proto(ir.to_proto(first))
    result = Pipeline(parse_passes(folding(target, costs="none"))).run(again)
    kinds = [each.op_identifier() for each in result.model.graph]
    if target == "ort":
        assert kinds == [each.op_identifier() for each in first.graph]
    else:
        assert not any(domain for domain, _, _ in kinds)
    drawn = [4 if isinstance(each, str) else each for each in shape]
    feed = {"x": np.random.default_rng(1).integers(0, 256, drawn).astype(np.uint8)}
    wanted = Session(first, REFERENCE).run(feed)["y"].astype(np.int64)
    got = Session(result.model, REFERENCE).run(feed)["y"].astype(np.int64)
    assert np.max(np.abs(got - wanted)) <= (0 if target == "ort" else 1)
    assert np.mean(got != wanted) < 1e-3
