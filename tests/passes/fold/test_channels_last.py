"""MaxPool stays on codes where ONNX Runtime holds them channels-last, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.fold_qdq import NO_COSTS, FoldQdq
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, Session

CASES = {
    "a convolution": True,
    "a sum of convolutions": True,
    "convolutions side by side": True,
    "a pool of a convolution": True,
    "a sum with the input": False,
    "the input": False,
}


def _source(graph: Any, case: str) -> str:
    x = graph.dequantize(graph.input((1, 16, 12, 12), ir.DataType.UINT8.value), 0.03, 120)

    def conv() -> str:
        weights, _ = graph.weights((16, 16, 3, 3), 0)
        return graph.fake(graph.op("Conv", x, weights, pads=[1, 1, 1, 1]), 0.2, 110)

    match case:
        case "a convolution":
            return conv()
        case "a sum of convolutions":
            return graph.fake(graph.op("Add", conv(), conv()), 0.3, 110)
        case "convolutions side by side":
            return graph.op("Concat", conv(), conv(), axis=1)
        case "a pool of a convolution":
            return graph.op("MaxPool", conv(), kernel_shape=[2, 2])
        case "a sum with the input":
            return graph.fake(graph.op("Add", conv(), x), 0.3, 110)
        case _:
            return x


@pytest.mark.parametrize("case", CASES)
def test_max_pool_stays_integer_only_channels_last(
    case: str, fake_quant: Callable[..., Any]
) -> None:
    graph = fake_quant(4)
    pooled = graph.op("MaxPool", _source(graph, case), kernel_shape=[3, 3], strides=[2, 2])
    graph.outputs.append(pooled)
    model: ir.Model = graph.model()
    FoldQdq(costs=NO_COSTS).run(model)
    last = [node for node in model.graph if node.op_type == "MaxPool"][-1]
    source = last.inputs[0]
    assert source is not None
    assert (source.dtype == ir.DataType.UINT8) is CASES[case]
    executed = optimized_op_census(ir.to_proto(model), DEPLOYMENT)
    fast = any("NhwcMaxPool" in name for name in executed)
    assert fast is CASES[case], executed


@pytest.mark.parametrize(
    ("channels", "mode", "turned"), [(32, "DCR", True), (32, "CRD", False), (12, "DCR", False)]
)
def test_blocks_of_pixels_change_places_channels_last(
    channels: int, mode: str, turned: bool, fake_quant: Callable[..., Any]
) -> None:
    graph = fake_quant(6)
    x = graph.dequantize(graph.input((2, 4, 5, 6), ir.DataType.UINT8.value), 0.03, 120)
    weights, _ = graph.weights((channels, 4, 1, 1), 0)
    codes = graph.fake(graph.op("Conv", x, weights), 0.05, 110)
    graph.outputs.append(graph.op("DepthToSpace", codes, blocksize=2, mode=mode))
    model: ir.Model = graph.model()
    before: Any = Session(model.clone()).run(graph.feed())
    FoldQdq(costs=NO_COSTS).run(model)
    assert ("DepthToSpace" not in {node.op_type for node in model.graph}) is turned
    after: Any = Session(model, DEPLOYMENT).run(graph.feed())
    for name, wanted in before.items():
        np.testing.assert_allclose(after[name], wanted, atol=1e-6)
