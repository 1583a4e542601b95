"""Softmax of codes against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from fixtures.fake_quant.contract import structure
from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.simplify.infer_shapes import InferShapes
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Target = Literal["ort", "standard", "integer", "qdq"]
TARGETS: tuple[Target, ...] = ("ort", "standard", "integer", "qdq")
Array = npt.NDArray[Any]

# Scale and zero point of the input, then of the output (from the smallest code), and the axis.
SOFTMAXES = {
    "last": (0.05, 120, 1 / 256, 0, -1),
    "first axis": (0.05, 120, 1 / 256, 0, 0),
    "middle axis": (0.11, 3, 1 / 256, 0, 1),
    "flat": (0.001, 255, 1 / 256, 0, 2),
    "steep": (1.7, 77, 1 / 255, 0, 1),
    "coarse, offset": (0.3, 0, 0.017, 100, 1),
    "fine, saturating": (0.2, 128, 0.0005, 30, 2),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", SOFTMAXES)
def test_softmax_is_rounded_once(
    case: str, dtype: str, parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    scale, zero, scale_out, zero_out, axis = SOFTMAXES[case]
    low = np.iinfo(dtype).min
    text = f"""
    agraph ({dtype}[3,17,5] q) => ({dtype}[3,17,5] y)
    <float s = {{{scale}}}, {dtype} z = {{{zero + low}}}, float t = {{{scale_out:.9f}}},
     {dtype} o = {{{zero_out + low}}}>
    {{
      x = DequantizeLinear (q, s, z)
      c = Softmax <axis = {axis}> (x)
      y = QuantizeLinear (c, t, o)
    }}
    """
    codes: Array = np.random.default_rng(3).integers(0, 256, (3, 17, 5)) + low
    codes[0, :, 0] = codes[0, 0, 0]  # all alike: a tie in float, too
    reals: Array = (codes - zero - low) * float(np.float32(scale))
    weights = np.exp(reals - np.max(reals, axis=axis, keepdims=True))
    exact: Array = weights / np.sum(weights, axis=axis, keepdims=True)
    exact = exact / float(np.float32(f"{scale_out:.9f}")) + zero_out + low
    limits = np.iinfo(dtype)
    wanted = np.clip(np.rint(exact), limits.min, limits.max).astype(np.int64)
    ties = np.abs(exact - np.floor(exact) - 0.5) < 2e-4
    for target in TARGETS:
        model = parse(text)
        apply_pass(FoldQdq(target), model)
        for config in (REFERENCE, DEPLOYMENT):
            found = Session(model, config).run({"q": codes.astype(dtype)})["y"].astype(np.int64)
            off = np.abs(found - wanted)
            assert np.max(off) <= 1, target
            if target in ("standard", "integer"):
                assert not np.any(off[~ties]), target
        if target in ("standard", "integer"):
            assert not any(
                output.dtype == ir.DataType.FLOAT for node in model.graph for output in node.outputs
            )


@pytest.mark.parametrize(
    ("columns", "scale", "op_type"),
    [
        (4, 1 / 256, "QLinearSoftmax"),
        (4, 1 / 510, "Softmax"),
        (1, 1 / 256, "Softmax"),
        ("N", 1 / 256, "Softmax"),
    ],
)
def test_what_may_saturate_is_no_kernel_of_onnxruntime(
    columns: int | str, scale: float, op_type: str, parse: Callable[..., ir.Model]
) -> None:
    """The kernel of 1.23 gives 0 for what is more than 255: for two alike, at 1/510."""
    model = parse(f"""
    agraph (uint8[2,{columns}] q) => (uint8[2,{columns}] y)
    <float s = {{0.05}}, uint8 z = {{0}}, float t = {{{scale:.9f}}}>
    {{
      x = DequantizeLinear (q, s, z)
      c = Softmax (x)
      y = QuantizeLinear (c, t, z)
    }}
    """)
    more = 0 if isinstance(columns, str) else columns - 1
    codes = np.array([[255] + [0] * more, [255] + [255] * more], np.uint8)
    wanted = Session(model, REFERENCE).run({"q": codes})["y"].astype(int)
    InferShapes().run(model)
    FoldQdq("ort").run(model)
    assert op_type in {node.op_type for node in model.graph}
    found = Session(model, REFERENCE).run({"q": codes})["y"]
    assert np.max(np.abs(found - wanted)) <= 1


_LARGE = """
    agraph (uint8[{shape}] q) => (uint8[{shape}] y)
    <float s = {{0.05}}, uint8 z = {{120}}, float t = {{0.003921569}}, uint8 u = {{0}}>
    {{
      x = DequantizeLinear (q, s, z)
      c = Softmax (x)
      y = QuantizeLinear (c, t, u)
    }}
"""


def test_many_elements_are_dequantized_by_one_kernel(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    """The Reshape and the repeated scale are what ONNX Runtime does not take a pair through."""
    model = parse(_LARGE.format(shape="N,3,8,60"))
    codes = np.random.default_rng(3).integers(0, 256, (2, 3, 8, 60)).astype(np.uint8)
    [wanted] = Session(model, REFERENCE).run({"q": codes}).values()
    apply_pass(FoldQdq("ort"), model)
    assert_text(
        model,
        """
        agraph (uint8[N,3,8,60] q) => (uint8[N,3,8,60] y)
        <float[3] scale = {0.05, 0.05, 0.05}, float scale_1 = {0.003921569},
         int64[4] shape = {0, 0, 0, 0}, uint8[3] zero_point = {120, 120, 120},
         uint8 zero_point_1 = {0}>
        {
          c_dequantizelinear = DequantizeLinear <axis: int = 1> (q, scale, zero_point)
          c_reshape = Reshape (c_dequantizelinear, shape)
          c_softmax = Softmax (c_reshape)
          y = QuantizeLinear (c_softmax, scale_1, zero_point_1)
        }
        """,
    )
    for config in (REFERENCE, DEPLOYMENT):
        [found] = Session(model, config).run({"q": codes}).values()
        np.testing.assert_array_equal(found, wanted)
    assert "QLinearSoftmax" not in optimized_op_census(ir.to_proto(model), DEPLOYMENT)


@pytest.mark.parametrize("shape", ["2,3,8,60", "N,M,60", "1,2000", "N,1,40,40"])
def test_a_second_fold_writes_the_same(shape: str, parse: Callable[..., ir.Model]) -> None:
    once = FoldQdq("ort").run(parse(_LARGE.format(shape=shape))).model
    first = ir.to_proto(once).graph
    twice = ir.to_proto(FoldQdq("ort").run(once).model).graph
    assert structure(twice) == structure(first)
    assert len(twice.initializer) == len(first.initializer)
