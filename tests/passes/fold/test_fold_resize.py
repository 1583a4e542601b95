"""Resize of codes: nearest neighbours are selected, interpolation is rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.fold.interpolation import COORDINATES, ResizedAxis
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Target = Literal["ort", "standard", "integer", "qdq"]
TARGETS: tuple[Target, ...] = ("ort", "standard", "integer", "qdq")
Array = npt.NDArray[Any]
_SIZES = ((5, 9, None), (7, 3, None), (4, 1, None), (1, 4, None), (6, 10, 1.7), (9, 2, 0.33),
          (64, 192, None), (3, 3, None), (224, 134, 0.6))  # fmt: skip


def _resize(
    attributes: str, inputs: str, constants: str, parse: Callable[..., ir.Model]
) -> ir.Model:
    return parse(
        f"agraph (float[1,1,2,N] x) => (float[A,B,C,D] y) <{constants}>"
        f" {{ y = Resize <{attributes}> ({inputs}) }}",
        opset=19,
    )


@pytest.mark.parametrize("mode", ["linear", "cubic", "cubic, inside"])
@pytest.mark.parametrize("coordinates", sorted(COORDINATES))
def test_matrices_are_what_resize_computes(
    coordinates: str, mode: str, parse: Callable[..., ir.Model]
) -> None:
    inside = int(mode.endswith("inside"))
    attributes = (
        f'mode = "{mode.split(",")[0]}", exclude_outside = {inside}, cubic_coeff_a = -0.6,'
        f' coordinate_transformation_mode = "{coordinates}"'
    )
    for old, new, scale in _SIZES:
        numbers = np.random.default_rng(old).integers(0, 256, (1, 1, 2, old)).astype(np.float32)
        sizes = ("x, , , k", f"int64[4] k = {{1, 1, 2, {new}}}")
        scales = ("x, , k", f"float[4] k = {{1.0, 1.0, 1.0, {scale}}}")
        model = _resize(attributes, *(sizes if scale is None else scales), parse)
        found = Session(model, REFERENCE).run({"x": numbers})["y"]
        axis = ResizedAxis(old, new, new / old if scale is None else scale, coordinates)
        matrix = (
            axis.linear() if mode == "linear" else axis.cubic(-0.6, exclude_outside=bool(inside))
        )
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-12)
        wanted: Array = np.einsum("ncho,wo->nchw", numbers, matrix)
        np.testing.assert_allclose(found, wanted, atol=5e-3)


# Attributes, inputs, constants; the input is [1,2,5,6].
INTERPOLATIONS: dict[str, tuple[str, str, str]] = {
    "linear, doubled": ('mode = "linear"', "x, , k", "float[4] k = {1.0, 1.0, 2.0, 2.0}"),
    "linear, odd": (
        'mode = "linear", coordinate_transformation_mode = "align_corners"',
        "x, , , k",
        "int64[4] k = {1, 2, 7, 4}",
    ),
    "linear, asymmetric": (
        'mode = "linear", coordinate_transformation_mode = "asymmetric"',
        "x, , k",
        "float[4] k = {1.0, 1.0, 1.7, 0.6}",
    ),
    "linear, one axis": (
        'mode = "linear", axes = [3]',
        "x, , , k",
        "int64[1] k = {11}",
    ),
    "cubic": ('mode = "cubic"', "x, , , k", "int64[4] k = {1, 2, 9, 5}"),
    "cubic, inside": (
        'mode = "cubic", exclude_outside = 1, cubic_coeff_a = -0.5,'
        ' coordinate_transformation_mode = "pytorch_half_pixel"',
        "x, , , k",
        "int64[4] k = {1, 2, 3, 12}",
    ),
}
_GRIDS = {"one scale": (0.5, 120, 0.5, 120), "two": (0.37, 3, 0.19, 111)}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("grid", _GRIDS)
@pytest.mark.parametrize("case", INTERPOLATIONS)
def test_interpolation_is_rounded_once(
    case: str,
    grid: str,
    dtype: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
) -> None:
    attributes, inputs, constants = INTERPOLATIONS[case]
    scale, zero, scale_out, zero_out = _GRIDS[grid]
    low = np.iinfo(dtype).min
    text = (
        f"agraph ({dtype}[1,2,5,6] q) => ({dtype} y, float c)"
        f" <float s = {{{scale}}}, {dtype} z = {{{zero + low}}}, float t = {{{scale_out}}},"
        f" {dtype} o = {{{zero_out + low}}}, {constants}>"
        f" {{ x = DequantizeLinear (q, s, z) c = Resize <{attributes}> ({inputs})"
        " y = QuantizeLinear (c, t, o) }"
    )
    before = _inferred(parse(text, opset=19))
    codes = np.random.default_rng(7).integers(0, 256, (1, 2, 5, 6)) + low
    feed = {"q": codes.astype(dtype)}
    original = Session(before, REFERENCE).run(feed)
    exact = original["c"].astype(np.float64) / float(np.float32(scale_out)) + zero_out + low
    ties = np.abs(exact - np.floor(exact) - 0.5) < 1e-3
    for target in TARGETS:
        model = _inferred(parse(text.replace(", float c)", ")"), opset=19))
        result = apply_pass(FoldQdq(target), model)
        for config in (REFERENCE, DEPLOYMENT):
            found = Session(model, config).run(feed)["y"].astype(np.int64)
            off = np.abs(found - original["y"])
            assert np.max(off) <= 1
            assert not np.any(off[~ties])
        if target in ("standard", "integer"):
            assert result.rules["fold-interpolation"] == 1
            assert not any(
                output.dtype == ir.DataType.FLOAT for node in model.graph for output in node.outputs
            )
        else:
            remarks = [each for each in result.remarks if each.op_type == "Resize"]
            assert len(remarks) + result.rules["fold-interpolation"] == 1


# Old and new size of the last two axes, mode, the scales' quotient, and its terms.
_HALVES: dict[str, tuple[int, int, str, int, int]] = {
    "ninths": (5, 10, 'mode = "linear", coordinate_transformation_mode = "align_corners"', 1, 2),
    "fourteenths": (6, 7, 'mode = "linear"', 3, 4),
    "cubes of ninths": (
        4,
        12,
        'mode = "cubic", coordinate_transformation_mode = "asymmetric"',
        3,
        4,
    ),
    "cubes of fourteenths": (6, 7, 'mode = "cubic"', 1, 2),
}


@pytest.mark.parametrize("zero", [100, 101])
@pytest.mark.parametrize("case", _HALVES)
def test_halves_are_rounded_to_even(
    case: str, zero: int, parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    old, new, attributes, up, down = _HALVES[case]
    text = f"""
    agraph (uint8[1,8,{old},{old}] q) => (uint8[1,8,{new},{new}] y)
    <float s = {{{up}.0}}, uint8 z = {{7}}, float t = {{{down}.0}}, uint8 o = {{{zero}}},
     int64[4] k = {{1, 8, {new}, {new}}}>
    {{
      x = DequantizeLinear (q, s, z)
      c = Resize <{attributes}> (x, , , k)
      y = QuantizeLinear (c, t, o)
    }}
    """
    codes = np.random.default_rng(3).integers(0, 256, (1, 8, old, old))
    codes[:, 2:] = codes[:, 2:, :1, :1]  # maps of one number: a half, as often as not
    weights = _fractions(old, new, attributes)
    reals = np.vectorize(Fraction)(codes - 7)
    sums: Array = np.einsum("nchw,kh,lw->nckl", reals, weights, weights)
    exact: list[Fraction] = (sums * Fraction(up, down)).reshape(-1).tolist()
    assert sum(each.denominator == 2 for each in exact) > 50
    wanted = [min(max(round(each) + zero, 0), 255) for each in exact]
    for target in ("standard", "integer"):
        model = _inferred(parse(text, opset=19))
        apply_pass(FoldQdq(target), model)
        found = Session(model, REFERENCE).run({"q": codes.astype(np.uint8)})["y"]
        assert found.reshape(-1).tolist() == wanted


def _fractions(old: int, new: int, attributes: str) -> Array:
    """The weights of one axis as the specification has them, [new, old]."""
    weights = np.full((new, old), Fraction(0), object)
    for index in range(new):
        at = Fraction(2 * index + 1, 2) * old / new - Fraction(1, 2)
        if "align_corners" in attributes:
            at = Fraction(index * (old - 1), new - 1)
        if "asymmetric" in attributes:
            at = Fraction(index * old, new)
        first = math.floor(at)
        for place in range(first - 1, first + 3):
            distance = abs(at - place)
            weight = _cubic(distance) if "cubic" in attributes else max(1 - distance, 0)
            weights[index, min(max(place, 0), old - 1)] += weight
    return weights


def _cubic(distance: Fraction) -> Fraction:
    """Keys' kernel with a = -3/4."""
    if distance <= 1:
        return Fraction(5, 4) * distance**3 - Fraction(9, 4) * distance**2 + 1
    return Fraction(-3, 4) * (distance - 1) * (distance - 2) ** 2 if distance < 2 else Fraction(0)


REFUSED = {
    "antialias": ('mode = "linear", antialias = 1', "x, , k", "no integer form of antialiasing"),
    "aspect ratio": (
        'mode = "linear", keep_aspect_ratio_policy = "not_larger"',
        "x, , , n",
        "its sizes are not known",
    ),
    "cropped": (
        'mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"',
        "x, r, k",
        "no integer form of interpolation with tf_crop_and_resize",
    ),
    "extrapolated": (
        'coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 0.375',
        "x, r, k",
        "its extrapolation value 0.375 is not a code of 'x'",
    ),
    "scales computed": ('mode = "linear"', "x, , v", "its sizes are not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(
    case: str, parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    attributes, inputs, reason = REFUSED[case]
    model = parse(
        f"""
        agraph (uint8[1,2,5,6] q, float[4] v) => (uint8[1,2,A,B] y)
        <float s = {{0.5}}, uint8 z = {{3}}, float t = {{0.25}},
         float[4] k = {{1.0, 1.0, 2.0, 2.0}}, int64[4] n = {{1, 2, 7, 7}},
         float[8] r = {{0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0}}>
        {{
          x = DequantizeLinear (q, s, z)
          c = Resize <{attributes}> ({inputs})
          y = QuantizeLinear (c, t, z)
        }}
        """,
        opset=19,
    )
    result = apply_pass(FoldQdq("standard"), model)
    assert [each.reason for each in result.remarks if each.op_type == "Resize"] == [reason]


def _inferred(model: ir.Model) -> ir.Model:
    for output in model.graph.outputs:
        output.shape = None
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True))
