"""Q/DQ form with float biases, as TensorRT wants it; and that folding it again keeps all names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

_TEXT = """
g (float[1,2,4,4] f) => (int8[1,2,4,4] y)
<float s = {0.0497}, int8 z = {0}, int8[2,2,1,1] w = {9, -20, 33, 4}, float[2] sw = {0.0203, 0.011},
 int32[2] bq = {3000, -200}, float[2] sb = {0.00100891, 0.0005467}, float u = {0.0311}>
{
  q = QuantizeLinear (f, s, z)
  x = DequantizeLinear (q, s, z)
  wf = DequantizeLinear <axis = 0> (w, sw)
  b = DequantizeLinear <axis = 0> (bq, sb)
  c = Conv (x, wf, b)
  r = Relu (c)
  y = QuantizeLinear (r, u, z)
}
"""


def test_a_convolution_has_a_real_bias(parse: Callable[..., ir.Model]) -> None:
    model = parse(_TEXT)
    result = FoldQdq("qdq", biases="float").run(model)
    assert not result.remarks, "all activations are int8 around 0"
    assert result.rules["fold-linear"] == 1
    ops = [node.op_type for node in model.graph]
    assert ops[:5] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "QuantizeLinear"
    ]  # fmt: skip
    conv = next(node for node in model.graph if node.op_type == "Conv")
    bias = conv.inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    np.testing.assert_allclose(bias.const_value.numpy(), [3.02673, -0.10934], rtol=1e-6)
    numbers = np.random.default_rng(0)
    for config in (REFERENCE, DEPLOYMENT):
        for _ in range(4):
            feed = {"f": (3 * numbers.standard_normal((1, 2, 4, 4))).astype(np.float32)}
            wanted = Session(parse(_TEXT), REFERENCE).run(feed)["y"]
            np.testing.assert_array_equal(Session(model, config).run(feed)["y"], wanted)


def test_what_tensorrt_does_not_take_is_said(parse: Callable[..., ir.Model]) -> None:
    text = _TEXT.replace("int8 z = {0}", "uint8 z = {120}").replace("(int8[1", "(uint8[1")
    remarks = FoldQdq("qdq", biases="float").run(parse(text)).remarks
    said = "is uint8 around 120, TensorRT takes int8 around 0"
    assert {each.reason for each in remarks} >= {f"'q' {said}", f"'y' {said}"}
    assert not FoldQdq("qdq").run(parse(text)).remarks


@pytest.mark.parametrize("target", ["ort", "standard", "integer"])
def test_other_targets_have_no_biases_to_choose(
    target: str, parse: Callable[..., ir.Model]
) -> None:
    with pytest.raises(UsageError, match=f"float biases are for target qdq, not {target}"):
        parse_passes(f"fold-qdq{{target={target} biases=float}}")[0].run(parse(_TEXT))


@pytest.mark.parametrize("float_biases", [False, True])
@pytest.mark.parametrize("name", ["qdq_net.onnx", "tiny_mobilenet.onnx", "tiny_resnet.onnx"])
def test_folding_twice_keeps_all_names(name: str, float_biases: bool, fixtures_dir: Path) -> None:
    passes = parse_passes(folding("qdq", float_biases=float_biases))
    once = Pipeline(passes).run(ir.load(fixtures_dir / name)).model
    first = ir.to_proto(once).graph
    again = ir.to_proto(Pipeline(passes).run(once.clone()).model).graph
    assert [list(node.output) for node in again.node] == [list(node.output) for node in first.node]
    if name == "qdq_net.onnx":  # without guards, whose constants the first fold adds last
        kept = [each.name for each in first.initializer]
        assert [each.name for each in again.initializer] == kept
    if float_biases:
        assert not [each for each in first.initializer if each.data_type == 6], "int32 codes"
