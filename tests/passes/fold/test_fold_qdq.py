"""The fold as a whole: bodies, functions, refused steps, determinism, names, and its speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.listener import RewriteListener, Step
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.spec import print_pipeline
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

_NET = """
agraph (float[1,2,4,4] f) => (float[1,2,4,4] y)
<float s = {0.05}, uint8 z = {120}, int8[2,2,1,1] w = {9, -20, 33, 4}, float sw = {0.02}>
{
  q = QuantizeLinear (f, s, z)
  x = DequantizeLinear (q, s, z)
  wf = DequantizeLinear (w, sw)
  c = Conv (x, wf)
  r = Relu (c)
  p = QuantizeLinear (r, s, z)
  d = DequantizeLinear (p, s, z)
  a = Add (d, x)
  t = QuantizeLinear (a, s, z)
  y = DequantizeLinear (t, s, z)
}
"""


def _feed(shape: tuple[int, ...] = (1, 2, 4, 4)) -> dict[str, np.ndarray]:
    return {"f": np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 3}


def _census(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def test_fixture_network_folds_completely(fixtures_dir: Path) -> None:
    model = ir.load(fixtures_dir / "qdq_net.onnx")
    FoldQdq().run(model)
    census = _census(model)
    assert census["QLinearConv"] == 3
    assert census["MatMulIntegerToFloat"] == 1
    assert census["QuantizeLinear"] == 1, "only the float input is quantized"
    assert not set(census) & {"DequantizeLinear", "Conv", "Add", "MatMul", "Relu", "Concat"}


def test_boundary_tensors_keep_their_names(parse: Callable[..., ir.Model]) -> None:
    model = parse(_NET)
    FoldQdq().run(model)
    names = {output.name for node in model.graph for output in node.outputs}
    assert {"q", "p", "t", "y"} <= names


def test_the_same_input_gives_the_same_bytes(parse: Callable[..., ir.Model]) -> None:
    written: set[bytes] = set()
    for _ in range(3):
        model = parse(_NET)
        FoldQdq().run(model)
        written.add(ir.to_proto(model).SerializeToString(deterministic=True))
    assert len(written) == 1


class _Refuse(RewriteListener):
    """Permits the first ``budget`` steps and no more, as bisection does."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def permits(self, pass_name: str, step: Step) -> bool:
        self.budget -= 1
        return self.budget >= 0


@pytest.mark.parametrize("target", ["ort", "qdq"])
def test_any_prefix_of_the_steps_leaves_a_correct_model(
    target: Literal["ort", "qdq"],
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    whole = FoldQdq(target).run(parse(_NET)).rules.total()
    wanted = evaluate(parse(_NET), _feed())["y"]
    assert whole > 8
    for budget in range(whole + 1):
        model = parse(_NET)
        FoldQdq(target).run(model, [_Refuse(budget)])
        np.testing.assert_allclose(evaluate(model, _feed())["y"], wanted, atol=0.051)


def test_bodies_fold_and_may_read_codes_from_outside(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text = """
    agraph (float[1,2,4,4] f, bool k) => (float[1,2,4,4] y)
    <float s = {0.05}, uint8 z = {120}, int8[2,2,1,1] w = {9, -20, 33, 4}, float sw = {0.02}>
    {
      q = QuantizeLinear (f, s, z)
      x = DequantizeLinear (q, s, z)
      wf = DequantizeLinear (w, sw)
      y = If (k) <
        then_branch = t () => (float[1,2,4,4] ty) {
          c = Conv (x, wf)
          p = QuantizeLinear (c, s, z)
          ty = DequantizeLinear (p, s, z)
        },
        else_branch = e () => (float[1,2,4,4] ey) { ey = Erf (x) }
      >
    }
    """
    model = parse(text)
    apply_pass("fold-qdq", model)
    census = _census(model)
    assert census["QLinearConv"] == 1
    assert census["Conv"] == 0
    for choice in (True, False):
        feed = {**_feed(), "k": np.array(choice)}
        np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(parse(text), feed)["y"])


def test_local_functions_fold(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    agraph (float[1,2,4,4] f) => (float[1,2,4,4] y) { y = local.net (f) }
    <domain: "local", opset_import: ["" : 21]>
    net (x) => (y) {
      s = Constant <value: tensor = float {0.05}> ()
      z = Constant <value: tensor = uint8 {120}> ()
      q = QuantizeLinear (x, s, z)
      d = DequantizeLinear (q, s, z)
      a = Add (d, d)
      p = QuantizeLinear (a, s, z)
      y = DequantizeLinear (p, s, z)
    }
    """
    model = parse(text)
    apply_pass("fold-qdq", model)
    assert any(
        node.op_type == "QLinearAdd" for each in model.functions.values() for node in each.graph
    )
    np.testing.assert_array_equal(
        evaluate(model, _feed())["y"], evaluate(parse(text), _feed())["y"]
    )


def test_shared_bias_is_rewritten_for_each_reader(
    fake_quant: Callable[..., Any], evaluate: Callable[..., dict[str, Any]]
) -> None:
    """Two convolutions with inputs of different scales share one int32 bias."""
    graph = fake_quant(3)
    weights, scale = graph.weights((4, 4, 1, 1), 0)
    bias = graph.bias(4, scale * np.float32(0.02))
    for step in (0.02, 0.05):
        x = graph.fake(graph.input((1, 4, 5, 5)), step, 128)
        graph.outputs.append(graph.quantize(graph.op("Conv", x, weights, bias), 0.037, 128))
    before, after = graph.model(), graph.model()
    FoldQdq().run(after)
    assert _census(after)["QLinearConv"] == 2
    biases = [node.inputs[8] for node in after.graph if node.op_type == "QLinearConv"]
    assert biases[0] is not biases[1]
    got, wanted = evaluate(after, graph.feed()), evaluate(before, graph.feed())
    for name, codes in wanted.items():
        assert np.max(np.abs(codes.astype(int) - got[name])) <= 1


def test_old_opsets_are_refused_with_advice(parse: Callable[..., ir.Model]) -> None:
    model = parse(_NET, opset=11)
    result = FoldQdq().run(model)
    assert not result.modified
    assert {remark.advice for remark in result.remarks} >= {"upgrade the opset"}


def test_textual_form_round_trips() -> None:
    text = "fold-qdq{target=qdq}"
    assert print_pipeline(parse_passes(text)) == text


def _chain(fake_quant: Callable[..., Any], length: int) -> ir.Model:
    """A chain in which all Q/DQ nodes share one scale and zero point."""
    graph = fake_quant()
    parameters = graph.constant(np.float32(0.05)), graph.constant(np.uint8(120))
    value = graph.input((4, 4))
    while len(graph.nodes) < length:
        codes = graph.op("QuantizeLinear", value, *parameters)
        real = graph.op("DequantizeLinear", codes, *parameters)
        value = graph.op("Add", real, real)
    graph.outputs.append(value)
    return graph.model()


def test_folding_takes_linear_time(
    fake_quant: Callable[..., Any], growth_of_time: Callable[..., float]
) -> None:
    few, many = (_chain(fake_quant, nodes) for nodes in (400, 4000))
    runs = (lambda model=model: FoldQdq().run(model.clone()) for model in (few, many))
    assert growth_of_time(*runs) < 30


def test_requantize_chain_is_written_so_that_optimizers_keep_both_roundings(
    parse: Callable[..., ir.Model],
) -> None:
    """ONNX Runtime merges Q-DQ-Q-DQ with different scales into one pair: other numbers."""
    text = """
    agraph (float[1,2,4,4] f) => (float[1,2,4,4] y)
    <float s = {0.05}, uint8 z = {120}, float t = {0.07}, uint8 u = {90}>
    {
      q = QuantizeLinear (f, s, z)
      x = DequantizeLinear (q, s, z)
      p = QuantizeLinear (x, t, u)
      y = DequantizeLinear (p, t, u)
    }
    """
    wanted = Session(parse(text), REFERENCE).run(_feed())["y"]
    folded = parse(text)
    FoldQdq().run(folded)
    np.testing.assert_array_equal(Session(folded, DEPLOYMENT).run(_feed())["y"], wanted)
    unguarded = Session(parse(text), DEPLOYMENT).run(_feed())["y"]
    assert np.max(np.abs(unguarded - wanted)) > 0.01, "no longer needed: remove the guard"
