"""MaxPools of joined channels join what was pooled, and no number changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract, Pass, PassResult
from onnxfold.passes.fold.costs import FAMILIES, CostTable
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.targets.pooled_concat import pool_before_joining
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

_FREE = CostTable(
    "none", "none", {name: dict.fromkeys(each, 0.0) for name, each in FAMILIES.items()}
)


@dataclass(frozen=True)
class _PoolParts(Pass):
    """The step alone."""

    costs: CostTable
    name: ClassVar[str] = "pool-parts"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        pool_before_joining(cast(Plan, SimpleNamespace(graphs=[model.graph])), rewriter, self.costs)


_HEAD = """
<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>
agraph (uint8[N,1,4,6] x) => (uint8[N,3,2,3] y)
<float s = {0.5}, uint8 z = {7}, float t = {0.75}, int8 n = {0},
 int8[1,1,1,1] v = {3}, int8[2,1,1,1] w = {5, -2},
 uint8[N,1,4,6] a, uint8[N,2,4,6] b, uint8[N,3,4,6] c> {
 a = QLinearConv (x, s, z, v, s, n, s, z) b = QLinearConv (x, s, z, w, s, n, t, z) """
_POOL = "MaxPool <kernel_shape = [3, 2], pads = [1, 0, 0, 0], strides = [2, 2]>"
_JOIN = "com.microsoft.QLinearConcat <axis = 1>"
_CASES = {
    "requantizing": (
        f"c = {_JOIN} (t, z, a, s, z, b, t, z) y = {_POOL} (c) }}",
        f"a_pooled = {_POOL} (a) b_pooled = {_POOL} (b)"
        f" y = {_JOIN} (t, z, a_pooled, s, z, b_pooled, t, z) }}",
    ),
    "plain": (
        f"c = Concat <axis = -3> (a, b) y = {_POOL} (c) }}",
        f"a_pooled = {_POOL} (a) b_pooled = {_POOL} (b)"
        " y = Concat <axis = -3> (a_pooled, b_pooled) }",
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_rewrite(
    case: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    before, expected = _CASES[case]
    model = parse(_HEAD + before)
    feed = {"x": np.random.default_rng(0).integers(0, 256, (2, 1, 4, 6)).astype(np.uint8)}
    [wanted] = Session(model, REFERENCE).run(feed).values()
    result = apply_pass(_PoolParts(_FREE), model)
    assert result.rules == Counter({"pool-parts": 1, "remove-replaced": 1})
    assert_text(model, _HEAD + expected)
    for config in (REFERENCE, DEPLOYMENT):
        [found] = Session(model, config).run(feed).values()
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("tail", "output"),
    [
        (f"c = Concat <axis = 2> (a, a) y = {_POOL} (c) }}", "N,1,4,3"),
        (f"c = Concat <axis = 1> (a, b) y, i = {_POOL} (c) }}", "N,3,2,3"),
        (f"c = Concat <axis = 1> (a, b) p = {_POOL} (c) y = Concat <axis = 2> (p, c) }}", ""),
        (f"c = Concat <axis = 1> (x, b) y = {_POOL} (c) }}", "N,3,2,3"),
    ],
)
def test_others_stay(tail: str, output: str, parse: Callable[..., ir.Model]) -> None:
    model = parse(_HEAD.replace("N,3,2,3", output or "N,3,M,6") + tail)
    result = _PoolParts(_FREE).run(model)
    assert isinstance(result, PassResult)
    assert not result.rules


@pytest.mark.parametrize(("size", "strides", "count"), [(16, 2, 1), (16, 1, 0), (4, 2, 0)])
def test_it_is_done_where_it_is_faster(
    size: int, strides: int, count: int, fake_quant: Callable[..., Any]
) -> None:
    """Two pools of few pixels take longer than to copy the codes; so do those that keep them."""
    graph = fake_quant()
    value = graph.fake(graph.input((1, 16, size, size)), 0.1, 120)
    parts: list[str] = []
    for scale in (0.3, 0.2):
        weights, _ = graph.weights((16, 16, 1, 1), 0)
        parts.append(graph.fake(graph.op("Conv", value, weights), scale, 90))
    joined = graph.fake(graph.op("Concat", *parts, axis=1), 0.3, 90)
    pooled = graph.op("MaxPool", joined, kernel_shape=[2, 2], strides=[strides, strides])
    graph.outputs.append(graph.fake(pooled, 0.3, 90))
    model, feed = graph.model(), graph.feed()
    [wanted] = Session(model, REFERENCE).run(feed).values()
    result = FoldQdq().run(model)
    assert isinstance(result, PassResult)
    assert result.rules["pool-parts"] == count
    for config in (REFERENCE, DEPLOYMENT):
        [found] = Session(model, config).run(feed).values()
        assert np.mean(found != wanted) <= 1e-2
