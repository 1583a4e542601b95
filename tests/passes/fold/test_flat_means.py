"""Means of maps behind convolutions are read flat without being turned back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold import fold_qdq
from onnxfold.passes.fold.fold_qdq import NO_COSTS, FoldQdq
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session


def _leave(plan: Plan, rewriter: Rewriter) -> None:
    """In place of what turns means."""
    del plan, rewriter


def _classifier(
    graph: Any,
    flatten: str = "Reshape",
    *,
    behind: str = "Conv",
    pool: str = "GlobalAveragePool",
    axes: Sequence[int] = (2, 3),
    **attributes: Any,
) -> ir.Model:
    """A convolution, the mean of its maps, read as [batch, channels]."""
    real = graph.dequantize(graph.input((2, 16, 6, 6), ir.DataType.UINT8.value), 0.1, 120)
    if behind == "Conv":
        weights, _ = graph.weights((16, 16, 3, 3), 0)
        real = graph.fake(graph.op("Conv", real, weights, pads=[1, 1, 1, 1]), 0.3, 90)
    windows = {"kernel_shape": [4, 6], "strides": [4, 6]} if pool == "AveragePool" else {}
    mean = graph.fake(graph.op(pool, real, **windows), 0.2, 100)
    shape = [graph.constant(np.array([0, -1]))] if flatten == "Reshape" else []
    if flatten == "Squeeze":
        shape = [graph.constant(np.array(axes))]
    graph.outputs.append(graph.quantize(graph.op(flatten, mean, *shape, **attributes), 0.2, 100))
    return graph.model()


def _turns(model: ir.Model) -> int:
    return Counter(node.op_type for node in model.graph)["Transpose"]


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "AveragePool"])
@pytest.mark.parametrize("flatten", ["Reshape", "Flatten", "Squeeze"])
def test_nothing_is_turned_back_and_no_number_changes(
    flatten: str, pool: str, fake_quant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = fake_quant()
    model = _classifier(graph, flatten, pool=pool)
    flat, turned, feed = model.clone(), model.clone(), graph.feed()
    result = FoldQdq(costs=NO_COSTS).run(flat)
    assert isinstance(result, PassResult)
    assert result.rules["read-mean-flat"] == 1
    monkeypatch.setattr(fold_qdq, "read_means_flat", _leave)
    FoldQdq(costs=NO_COSTS).run(turned)
    nodes = [
        sum(optimized_op_census(ir.to_proto(each), DEPLOYMENT).values()) for each in (flat, turned)
    ]
    assert nodes[0] == nodes[1] - 1
    [wanted] = Session(turned, REFERENCE).run(feed).values()
    for config in (REFERENCE, DEPLOYMENT):
        [found] = Session(flat, config).run(feed).values()
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("flatten", "options"),
    [
        ("Squeeze", {"axes": [2]}),
        ("Flatten", {"axis": 2}),
        ("Reshape", {"behind": "input"}),
    ],
)
def test_others_stay(flatten: str, options: Any, fake_quant: Callable[..., Any]) -> None:
    model = _classifier(fake_quant(), flatten, **options)
    FoldQdq(costs=NO_COSTS).run(model)
    assert _turns(model) == 0
