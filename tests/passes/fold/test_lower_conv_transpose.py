"""ConvTranspose as Conv, phase by phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.fold.lower_conv_transpose import LowerConvTranspose
from onnxfold.passes.simplify.infer_shapes import InferShapes

BEFORE = """
    agraph (uint8[1,1,2,2] q) => (uint8[1,1,4,4] y)
<float sx = {0.5}, uint8 zx = {3}, float sy = {0.25}, uint8 zy = {7},
 int8[1,1,2,2] w = {1, 2, 3, 4}, float sw = {0.5}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  c = ConvTranspose <strides = [2, 2]> (x, wf)
  y = QuantizeLinear (c, sy, zy)
}
"""

AFTER = """
    agraph (uint8[1,1,2,2] q) => (uint8[1,1,4,4] y)
<float sx = {0.5}, uint8 zx = {3}, float sy = {0.25}, uint8 zy = {7},
 int8[4,1,1,1] c_weights = {1, 2, 3, 4}, float c_scale = {0.5}, int8 c_zero_point = {0},
 int8[1,1,2,2] w = {1, 2, 3, 4}, float sw = {0.5}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  c_dequantized = DequantizeLinear (c_weights, c_scale, c_zero_point)
  c_phases = Conv <group: int = 1, kernel_shape: ints = [1, 1], pads: ints = [0, 0, 0, 0]>
      (x, c_dequantized)
  c_interleaved = DepthToSpace <blocksize: int = 2, mode: string = "DCR"> (c_phases)
  y = QuantizeLinear (c_interleaved, sy, zy)
}
"""


def test_phases_become_channels(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(BEFORE)
    result = apply_pass(LowerConvTranspose(), model)
    assert result.rules == {"lower-conv-transpose": 1}
    assert_text(model, AFTER)


def test_float_result_is_left(parse: Callable[..., ir.Model]) -> None:
    text = BEFORE.replace("  y = QuantizeLinear (c, sy, zy)\n", "  y = Relu (c)\n")
    model = parse(text.replace("(uint8[1,1,4,4] y)", "(float[1,1,4,4] y)"))
    assert not LowerConvTranspose().run(model).modified


def test_run_time_cropping_is_left_with_a_reason(parse: Callable[..., ir.Model]) -> None:
    model = parse(BEFORE.replace("strides = [2, 2]", "strides = [2, 2], output_shape = [4, 4]"))
    result = LowerConvTranspose().run(model)
    assert not result.modified
    assert "output_shape" in result.remarks[0].reason


@st.composite
def _cases(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    if draw(st.booleans()):
        strides = [strides[0]] * rank
    dilations = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    return {
        "kernel": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": [draw(st.integers(0, r)) for r in reach] + [0] * rank,
        "output_padding": [draw(st.integers(0, s - 1)) for s in strides],
        "group": draw(st.sampled_from([1, 2])),
        "auto_pad": draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER"])),
        "per_channel": draw(st.booleans()),
        "dynamic": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def _model(case: dict[str, Any], parse: Callable[..., ir.Model]) -> ir.Model:
    numbers = np.random.default_rng(case["seed"])
    rank, group = len(case["kernel"]), case["group"]
    shape = [2 * group, 3, *case["kernel"]]
    weights = numbers.integers(-127, 128, shape)
    scales = numbers.uniform(0.01, 0.02, 3 if case["per_channel"] else 1).astype(np.float32)
    # Of the accumulator's unit, so that the fold need not round it.
    units: Array = np.tile(np.broadcast_to(0.0503 * scales, 3), group)
    bias: Array = np.asarray(numbers.integers(-900, 900, 3 * group) * units, np.float32)
    square = rank == 2 and len(set(case["strides"])) == 1
    free = case["dynamic"] and (rank == 1 or square)
    data = ["N", 2 * group, *(["A", "B"] if free else [4, 5, 3])[:rank]]
    attributes = [
        f"{name} = [{', '.join(map(str, case[name]))}]"
        for name in ("strides", "dilations", "output_padding")
    ]
    attributes.append(f"group = {group}")
    if case["auto_pad"] == "NOTSET":
        attributes.append(f"pads = [{', '.join(map(str, case['pads']))}]")
    else:
        attributes.append(f'auto_pad = "{case["auto_pad"]}"')
    dims = ",".join(map(str, data))
    result = ",".join(["N", str(3 * group)] + [f"R{i}" for i in range(rank)])
    scale_shape = "[3]" if case["per_channel"] else ""
    return parse(
        f"""
        agraph (uint8[{dims}] q) => (uint8[{result}] y)
        <float sx = {{0.0503}}, uint8 zx = {{120}}, float sy = {{0.0719}}, uint8 zy = {{130}},
         int8[{",".join(map(str, shape))}] w = {{{",".join(map(str, weights.reshape(-1)))}}},
         float{scale_shape} sw = {{{",".join(map(repr, map(float, scales)))}}},
         float[{3 * group}] b = {{{",".join(map(repr, map(float, bias)))}}}>
        {{
          x = DequantizeLinear (q, sx, zx)
          wf = DequantizeLinear <axis = 1> (w, sw)
          c = ConvTranspose <{", ".join(attributes)}> (x, wf, b)
          y = QuantizeLinear (c, sy, zy)
        }}
        """
    )


@pytest.mark.parametrize("target", [None, "ort", "standard", "integer"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=_cases())
def test_same_numbers_for_any_geometry(
    target: Any,
    case: dict[str, Any],
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    model = _model(case, parse)
    sizes = [4, 5, 3][: len(case["kernel"])]
    codes = np.random.default_rng(1).integers(0, 256, [2, 2 * case["group"], *sizes])
    feed = {"q": codes.astype(np.uint8)}
    want = evaluate(model, feed)["y"].astype(int)
    InferShapes().run(model)
    assert LowerConvTranspose().run(model).modified
    if target is not None:
        FoldQdq(target=target).run(model)
        assert not any(node.op_type in ("ConvTranspose", "Conv") for node in model.graph)
    got = evaluate(model, feed)["y"].astype(int)
    assert got.shape == want.shape
    assert np.max(np.abs(got - want), initial=0) <= 1
    assert np.count_nonzero(got != want) <= max(1, got.size // 1000)
