"""align-concat: the same function in float, one range for all that a Concat joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.quantize.align_concat import AlignConcat
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.session import REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]

ONE = """g (float[1,1,4] x) => (float[1,1,4] y)
    <float[1,1,1] w = {4}, float[1] b = {-2}, float[1,2,1] u = {3, 2}, float[1] c = {1}>
    { h = Conv(x, w, b)  j = Concat<axis = 1>(x, h)  y = Conv(j, u, c) }"""


def _run(model: ir.Model, ranges: Ranges) -> dict[str, int]:
    rank = len(model.graph.inputs[0].shape or ())
    x = np.random.default_rng(3).uniform(0, 1, (1, 1, *(4,) * (rank - 2)))
    feed = {"x": x.astype(np.float32)}
    wanted = Session(model, REFERENCE).run(feed)["y"]
    result = Pipeline((AlignConcat(ranges),)).run(model)
    found = Session(model, REFERENCE).run(feed)["y"]
    assert np.max(np.abs(found - wanted)) <= 1e-5 * np.max(np.abs(wanted))
    return dict(result.results[-1][1].rules)


def test_an_operand_takes_the_range_of_the_input(
    parse: Parse, assert_text: Callable[[ir.Model, str], None]
) -> None:
    model = parse(ONE)
    assert _run(model, Ranges({"x": (0, 1), "h": (-2, 2)})) == {"align-operands": 1}
    # h / 4 + 1/2 lies in [0, 1]; 2 h = 8 (h / 4 + 1/2) - 4.
    assert_text(
        model,
        """g (float[1,1,4] x) => (float[1,1,4] y)
        <float[1,1,1] w_1 = {1}, float[1] b_1 = {0}, float[1,2,1] u_1 = {3, 8}, float[1] c_1 = {-3}>
        { h = Conv(x, w_1, b_1)  j = Concat<axis = 1>(x, h)  y = Conv(j, u_1, c_1) }""",
    )


@pytest.mark.parametrize(
    ("between", "last"),
    [
        ("r = Relu(h)", "y = Conv(j, u, c)"),
        ("r = Identity(h)", "y = Conv<pads = [1, 1]>(j, v, c)"),
    ],
)
def test_padding_and_relu_take_a_factor_only(parse: Parse, between: str, last: str) -> None:
    operand = "h" if "Identity" in between else "r"
    steps = "h = Conv(x, w, b)" if operand == "h" else f"h = Conv(x, w, b)  {between}"
    model = parse(
        f"""g (float[1,1,4] x) => (float[1,1,N] y)
        <float[1,1,1] w = {{4}}, float[1] b = {{-2}}, float[1,2,1] u = {{3, 2}}, float[1] c = {{1}},
         float[1,2,3] v = {{3, 2, 1, 1, 2, 3}}>
        {{ {steps}  j = Concat<axis = 1>(x, {operand})  {last} }}"""
    )
    assert _run(model, Ranges({"x": (0, 1), operand: (-2, 2)})) == {"align-operands": 1}
    names = {name: value.const_value for name, value in model.graph.initializers.items()}
    scaled = names["w_1"]
    assert scaled is not None
    assert scaled.numpy().tolist() == [[[2.0]]]


def test_the_range_of_a_skip_connection_is_that_of_its_source(parse: Parse) -> None:
    model = parse(
        """g (float[1,1,4] x) => (float[1,1,2] y)
        <float[1,1,3] w = {4, 1, 2}, float[1] b = {-2}, float[1,2,1] u = {3, 2}, float[1] c = {1},
         int64[1] one = {1}, int64[1] end = {-1}, int64[1] axis = {2}>
        { h = Conv(x, w, b)  s = Slice(x, one, end, axis)  j = Concat<axis = 1>(s, h)
          y = Conv(j, u, c) }"""
    )
    ranges = Ranges({"x": (0, 1), "s": (0.25, 0.5), "h": (-2, 2)})
    assert _run(model, ranges) == {"align-operands": 1}
    weights = model.graph.initializers["w_1"].const_value
    assert weights is not None
    assert weights.numpy().ravel().tolist() == [1, 0.25, 0.5]


@pytest.mark.parametrize(
    ("nodes", "ranges"),
    [
        # Nothing that cannot be changed; another reader; no range; nothing to do.
        ("h = Conv(x, w, b) k = Conv(x, w) j = Concat<axis = 1>(h, k)", {"h": (-2, 2)}),
        ("h = Conv(x, w, b) j = Concat<axis = 1>(x, h) z = Neg(j)", {"h": (-2, 2), "x": (0, 1)}),
        ("h = Conv(x, w, b) j = Concat<axis = 1>(x, h)", {"x": (0, 1)}),
        ("h = Conv(x, w, b) j = Concat<axis = 1>(x, h)", {"x": (0, 1), "h": (0, 1)}),
    ],
)
def test_what_stays(parse: Parse, nodes: str, ranges: dict[str, tuple[float, float]]) -> None:
    outputs = "float[1,1,4] y" + (", float[1,2,4] z" if "z =" in nodes else "")
    model = parse(
        f"""g (float[1,1,4] x) => ({outputs})
        <float[1,1,1] w = {{4}}, float[1] b = {{-2}}, float[1,2,1] u = {{3, 2}}, float[1] c = {{1}}>
        {{ {nodes}  y = Conv(j, u, c) }}"""
    )
    assert _run(model, Ranges(ranges)) == {}


def test_codes_of_an_image_beside_a_wide_correction_lose_nothing(parse: Parse) -> None:
    rng = np.random.default_rng(0)
    weights = ", ".join(f"{each:.4f}" for each in rng.normal(0, 3, 16))
    model = parse(
        f"""g (float[1,1,8,8] x) => (float[1,1,7,7] y)
        <float[4,1,2,2] w = {{{weights}}}, float[4] b = {{0.1, 0.2, 0, -0.1}},
         float[1,5,1,1] u = {{1, 0.02, 0.01, -0.02, 0.03}}, float[1] c = {{0.1}},
         int64[2] from = {{0, 0}}, int64[2] to = {{7, 7}}, int64[2] axes = {{2, 3}}>
        {{ h = Conv(x, w, b)  s = Slice(x, from, to, axes)  j = Concat<axis = 1>(s, h)
           y = Conv(j, u, c) }}"""
    )
    model = Pipeline(parse_passes("infer-shapes")).run(model).model
    feeds = [{"x": (rng.integers(0, 256, (1, 1, 8, 8)) / 255).astype(np.float32)} for _ in range(8)]

    def error(each: ir.Model) -> float:
        ranges = calibrate(each, tensors_to_observe(each, PlacementOptions()), feeds)
        quantized = Pipeline((InsertQdq(ranges),)).run(each.clone()).model
        pairs = [
            (Session(model, REFERENCE).run(feed)["y"], Session(quantized, REFERENCE).run(feed)["y"])
            for feed in feeds
        ]
        return float(np.mean([np.square(wanted - found) for wanted, found in pairs]))

    ranges = calibrate(model, ("x", "h"), feeds)
    aligned = Pipeline((AlignConcat(ranges),)).run(model.clone()).model
    assert error(aligned) < error(model) / 20


def test_pixels_may_be_shuffled_on_the_way(parse: Parse) -> None:
    model = parse(
        """g (float[1,1,4,4] x) => (float[1,1,4,4] y)
        <float[4,1,2,2] w = {1,1,1,1, 1,0,0,1, 0,1,1,0, 2,0,0,2}, float[4] b = {-2, 1, 0, 1},
         float[1,2,1,1] u = {3, 2}, float[1] c = {1}>
        { h = Conv<strides = [2, 2]>(x, w, b)  s = DepthToSpace<blocksize = 2, mode = "CRD">(h)
          j = Concat<axis = 1>(x, s)  y = Conv(j, u, c) }"""
    )
    assert _run(model, Ranges({"x": (0, 1), "h": (-2, 2)})) == {"align-operands": 1}
