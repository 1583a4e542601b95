"""What moves, selects or compares elements does the same to codes: bit for bit, in every target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, Session, version

Target = Literal["ort", "standard", "integer", "qdq"]
TARGETS: tuple[Target, ...] = ("ort", "standard", "integer", "qdq")
_FLOAT_OPS = {"QuantizeLinear", "DequantizeLinear", "Cast"}

# The op on x [2,4,6,6]; constants besides; outputs that are plain integers.
MOVES: dict[str, tuple[str, str, str]] = {
    "Reshape": ("c = Reshape (x, k)", "int64[2] k = {2, -1}", ""),
    "Transpose": ("c = Transpose <perm = [0, 2, 3, 1]> (x)", "", ""),
    "Transpose, reversed": ("c = Transpose (x)", "", ""),
    "Flatten": ("c = Flatten <axis = 2> (x)", "", ""),
    "Unsqueeze": ("c = Unsqueeze (x, k)", "int64[2] k = {0, -1}", ""),
    "Squeeze": (
        "t = Unsqueeze (x, k) c = Squeeze (t, k)",
        "int64[1] k = {2}",
        "",
    ),
    "Slice": (
        "c = Slice (x, b, l, a, g)",
        "int64[2] b = {5, 1}, int64[2] l = {-10, 6}, int64[2] a = {2, -1}, int64[2] g = {-2, 2}",
        "",
    ),
    "Gather": ("c = Gather <axis = 1> (x, k)", "int64[2,2] k = {3, 0, -1, 1}", ""),
    "GatherElements": (
        "c = GatherElements <axis = 1> (x, k)",
        "int64[1,2,1,3] k = {3, 0, -1, 1, 2, 2}",
        "",
    ),
    "GatherND": ("c = GatherND <batch_dims = 1> (x, k)", "int64[2,1] k = {3, -1}", ""),
    "Split": ("c, d = Split <axis = 1, num_outputs = 2> (x)", "", "d"),
    "Split, uneven": ("d, c = Split <axis = -1> (x, k)", "int64[2] k = {1, 5}", "d"),
    "Concat": ("c = Concat <axis = 1> (x, x)", "", ""),
    "Pad": ("c = Pad (x, k)", "int64[8] k = {0, 0, 1, 0, 0, 1, 2, -1}", ""),
    "Pad, code": (
        "c = Pad (x, k, v)",
        "int64[8] k = {0, 0, 1, 0, 0, 1, 2, 1}, float v = {1.5}",
        "",
    ),
    "Pad, axes": (
        "c = Pad (x, k, v, a)",
        "int64[4] k = {1, 0, 1, 2}, float v = {-0.5}, int64[2] a = {-1, 1}",
        "",
    ),
    "Pad, reflect": (
        'c = Pad <mode = "reflect"> (x, k)',
        "int64[8] k = {0, 0, 1, 2, 0, 0, 2, 1}",
        "",
    ),
    "Pad, edge, value unread": (
        'c = Pad <mode = "edge"> (x, k, v)',
        "int64[8] k = {0, 1, 1, 2, 0, 0, 2, 1}, float v = {0.123}",
        "",
    ),
    "Pad, wrap": ('c = Pad <mode = "wrap"> (x, k)', "int64[8] k = {0, 0, 1, 2, 0, 0, 2, 1}", ""),
    "Tile": ("c = Tile (x, k)", "int64[4] k = {1, 2, 1, 3}", ""),
    "Expand": ("c = Expand (x, k)", "int64[5] k = {3, 2, 1, 1, 1}", ""),
    "DepthToSpace": ("c = DepthToSpace <blocksize = 2> (x)", "", ""),
    "DepthToSpace, CRD": ('c = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', "", ""),
    "SpaceToDepth": ("c = SpaceToDepth <blocksize = 3> (x)", "", ""),
    "ReverseSequence": (
        "c = ReverseSequence <batch_axis = 0, time_axis = 1> (x, k)",
        "int64[2] k = {3, 1}",
        "",
    ),
    "Compress": ("c = Compress <axis = 2> (x, k)", "bool[6] k = {1, 0, 0, 1, 1, 0}", ""),
    "Compress, flat": ("c = Compress (x, k)", "bool[4] k = {1, 0, 0, 1}", ""),
    "CenterCropPad": ("c = CenterCropPad <axes = [2, 3]> (x, k)", "int64[2] k = {3, 9}", ""),
    "Trilu": ("c = Trilu (x)", "", ""),
    "Trilu, lower": ("c = Trilu <upper = 0> (x, k)", "int64 k = {-1}", ""),
    "Identity": ("c = Identity (x)", "", ""),
    "Dropout": ("c = Dropout (x)", "", ""),
    "Cast": ("c = Cast <to = 1> (x)", "", ""),
    "CastLike": ("c = CastLike (x, v)", "float v = {1.0}", ""),
    "Resize, nearest": (
        'c = Resize <mode = "nearest"> (x, , k)',
        "float[4] k = {1.0, 1.0, 1.7, 0.6}",
        "",
    ),
    "Resize, nearest to sizes": (
        'c = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
        " (x, , , k)",
        "int64[4] k = {2, 4, 9, 4}",
        "",
    ),
    "Resize, cropped": (
        'c = Resize <coordinate_transformation_mode = "tf_crop_and_resize",'
        " extrapolation_value = 1.5> (x, r, , k)",
        "float[8] r = {0.0, 0.0, -0.2, 0.3, 1.0, 1.0, 0.7, 1.5}, int64[4] k = {2, 4, 5, 7}",
        "",
    ),
    "ReduceMax": ("c = ReduceMax (x, k)", "int64[2] k = {1, -1}", ""),
    "ReduceMin": ("c = ReduceMin <keepdims = 0> (x)", "", ""),
    "MaxPool": (
        "c = MaxPool <kernel_shape = [2, 3], strides = [2, 2], pads = [1, 1, 0, 1],"
        " dilations = [2, 1], ceil_mode = 1> (x)",
        "",
        "",
    ),
    "MaxPool, SAME": ('c = MaxPool <kernel_shape = [3, 3], auto_pad = "SAME_LOWER"> (x)', "", ""),
    "GlobalMaxPool": ("c = GlobalMaxPool (x)", "", ""),
    "TopK": ("c, i = TopK <axis = 1> (x, k)", "int64[1] k = {3}", "i"),
    "TopK, smallest": ("c, i = TopK <largest = 0> (x, k)", "int64[1] k = {2}", "i"),
    "ArgMax": ("c = Identity (x) i = ArgMax <axis = 1, keepdims = 0> (x)", "", "i"),
    "ArgMin, last": ("c = Identity (x) i = ArgMin <axis = 3, select_last_index = 1> (x)", "", "i"),
    "Shape": ("c = Identity (x) i = Shape <start = 1> (x)", "", "i"),
    "Size": ("c = Identity (x) i = Size (x)", "", "i"),
    "chain": (
        "t = Transpose <perm = [0, 2, 3, 1]> (x) p = Pad (t, k) u = Slice (p, b, l)"
        " c = Reshape (u, n)",
        "int64[8] k = {0, 1, 0, 0, 0, 0, 1, 0}, int64[1] b = {0}, int64[1] l = {1},"
        " int64[2] n = {-1, 4}",
        "",
    ),
}

_IS_OLDEST = version().startswith("1.23.")
_SLOW = ("CenterCropPad", "MaxPool", "Trilu")
_TYPES = {"uint8": ("uint8", 120), "int8": ("int8", -7), "unsigned": ("uint8", 0)}


def _model(case: str, kind: str, parse: Callable[..., ir.Model]) -> ir.Model:
    op, constants, plain = MOVES[case]
    dtype, zero = _TYPES[kind]
    extra, more = "", ""
    if plain == "i":
        extra = ", int64 i"
    elif plain:
        extra, more = f", {dtype} e", f" e = QuantizeLinear ({plain}, s, z)"
    text = (
        f"agraph ({dtype}[2,4,6,6] q) => ({dtype} y{extra})"
        f" <float s = {{0.5}}, {dtype} z = {{{zero}}}{', ' if constants else ''}{constants}>"
        f" {{ x = DequantizeLinear (q, s, z) {op} y = QuantizeLinear (c, s, z){more} }}"
    )
    return _inferred(parse(text, opset=19))


def _inferred(model: ir.Model) -> ir.Model:
    """The model with the shapes of its outputs as they follow from its nodes."""
    for output in model.graph.outputs:
        output.shape = None
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True))


def _feed(model: ir.Model) -> dict[str, np.ndarray]:
    """Few different codes, so that there are ties."""
    assert model.graph.inputs[0].dtype is not None
    dtype = model.graph.inputs[0].dtype.numpy()
    low = np.iinfo(dtype).min
    numbers = np.random.default_rng(3).integers(100, 130, (2, 4, 6, 6)) + low
    return {"q": numbers.astype(dtype)}


_CASES = [
    (case, kind)
    for case in MOVES
    for kind in _TYPES
    if kind != "unsigned" or case.startswith(("CenterCropPad", "Pad", "Trilu"))
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("case", "kind"), _CASES)
def test_moved_codes_are_the_quantized_moved_numbers(
    case: str,
    target: Target,
    kind: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    if case.startswith("Depth") and (target, kind) == ("qdq", "int8") and _IS_OLDEST:
        pytest.skip("onnxruntime 1.23 takes Q/DQ away from around what has no int8 kernel")
    before, model = _model(case, kind, parse), _model(case, kind, parse)
    result = apply_pass(FoldQdq(target), model)
    feed = _feed(before)
    wanted = evaluate(before, feed)
    found = evaluate(model, feed)
    optimized = Session(model, DEPLOYMENT).run(feed)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        np.testing.assert_array_equal(optimized[name], value, err_msg=name)
    reasons = [each.reason for each in result.remarks if "runtime 1.23" not in each.reason]
    assert not reasons or (target == "ort" and case.startswith(_SLOW)), reasons
    census = {node.op_type for node in model.graph}
    if target in ("standard", "integer"):
        assert not census & {"QuantizeLinear", "DequantizeLinear"}, census
        assert not any(
            output.dtype == ir.DataType.FLOAT for node in model.graph for output in node.outputs
        )


# The op on d [3,5] and u, its updates; w is a constant of updates.
SCATTERS: dict[str, tuple[str, str]] = {
    "elements": ("ScatterElements <axis = 1> (d, k, u)", "int64[3,2] k = {0, 4, -1, 1, 2, 2}"),
    "elements, max": (
        'ScatterElements <axis = 0, reduction = "max"> (d, k, u)',
        "int64[3,2] k = {0, 2, -1, 1, 2, 2}",
    ),
    "rows": ("ScatterND (d, k, u)", "int64[3,2,2] k = {0, 1, 2, 2, 1, 1, 0, 0, -1, -1, 2, 0}"),
    "rows, min": (
        'ScatterND <reduction = "min"> (d, k, u)',
        "int64[3,2,2] k = {0, 1, 2, 2, 1, 1, 0, 0, -1, -1, 2, 0}",
    ),
    "constant updates": (
        "ScatterElements <axis = 1> (d, k, w)",
        "int64[3,1] k = {0, 4, -1}, float[3,1] w = {0.31, -7.0, 900.0}",
    ),
    "constant data": (
        "ScatterElements <axis = 1> (w, k, u)",
        "int64[3,2] k = {0, 1, 0, 1, 2, 2}, float[3,3] w ="
        " {0.31, -7.0, 90.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0}",
    ),
}


@pytest.mark.parametrize("grids", ["one", "several"])
@pytest.mark.parametrize("case", SCATTERS)
def test_updates_are_scattered_as_codes_of_one_type(
    case: str,
    grids: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    op, constants = SCATTERS[case]
    others = {"one": ((0.5, 120), (0.5, 120)), "several": ((0.37, 101), (0.41, 3))}[grids]
    (update_scale, update_zero), (scale, zero) = others
    text = f"""
    agraph (uint8[3,5] q, uint8[3,2] p) => (uint8 y)
    <float s = {{0.5}}, uint8 z = {{120}}, float t = {{{update_scale}}},
     uint8 v = {{{update_zero}}}, float o = {{{scale}}}, uint8 n = {{{zero}}}, {constants}>
    {{
      d = DequantizeLinear (q, s, z)
      u = DequantizeLinear (p, t, v)
      c = {op}
      y = QuantizeLinear (c, o, n)
    }}
    """
    feed = {
        "q": np.random.default_rng(1).integers(0, 256, (3, 5)).astype(np.uint8),
        "p": np.random.default_rng(2).integers(0, 256, (3, 2)).astype(np.uint8),
    }
    for target in TARGETS:
        before, model = (_inferred(parse(text, opset=18)) for _ in range(2))
        result = apply_pass(FoldQdq(target), model)
        assert result.rules["fold-scatter"] == 1, result.remarks
        wanted = evaluate(before, feed)["y"]
        np.testing.assert_array_equal(evaluate(model, feed)["y"], wanted)
        np.testing.assert_array_equal(Session(model, DEPLOYMENT).run(feed)["y"], wanted)
        if target in ("standard", "integer"):
            assert not {node.op_type for node in model.graph} & _FLOAT_OPS - {"Cast"}


def test_sums_are_not_scattered(parse: Callable[..., ir.Model]) -> None:
    text = """
    agraph (uint8[3] q) => (uint8[3] y) <float s = {0.5}, uint8 z = {3}, int64[3] k = {0, 0, 1}>
    {
      d = DequantizeLinear (q, s, z)
      c = ScatterElements <reduction = "add"> (d, k, d)
      y = QuantizeLinear (c, s, z)
    }
    """
    result = FoldQdq().run(parse(text, opset=18))
    assert "no integer kernel scatters with reduction add" in [
        remark.reason for remark in result.remarks
    ]


def test_rounding_moves_ahead_of_what_selects_and_shapes_are_read_from_codes(
    parse: Callable[..., ir.Model],
    assert_text: Callable[[ir.Model, str], None],
    apply_pass: Callable[..., PassResult],
) -> None:
    model = parse(
        """
        agraph (uint8[1,2,4] q) => (uint8[1,1,4] y, int64[3] n)
        <float s = {0.5}, uint8 z = {100}, int8[2,2,1] w = {2, -3, 1, 1}, float sw = {0.5},
         int64[1] k = {1}>
        {
          x = DequantizeLinear (q, s, z)
          wf = DequantizeLinear (w, sw)
          c = Conv (x, wf)
          v, i = TopK <axis = 1> (c, k)
          n = Shape (c)
          y = QuantizeLinear (v, s, z)
        }
        """,
        opset=21,
    )
    result = apply_pass(FoldQdq("ort"), model)
    assert_text(
        model,
        """
        agraph (uint8[1,2,4] q) => (uint8[1,1,4] y, int64[3] n)
        <float scale = {0.5}, uint8 zero_point = {100}, int8[2,2,1] c_weights_codes = {2, -3, 1, 1},
         int8 zero_point_1 = {0}, int64[1] k = {1}>
        {
          c_qlinearconv = QLinearConv (q, scale, zero_point, c_weights_codes, scale,
            zero_point_1, scale, zero_point)
          v_cast = Cast <to: int = 6> (c_qlinearconv)
          v_codes, i = TopK <axis = 1> (v_cast, k)
          y = Cast <to: int = 2> (v_codes)
          n = Shape (c_qlinearconv)
        }
        """,
    )
    assert {name: n for name, n in result.rules.items() if name.startswith("fold-")} == {
        "fold-linear": 1,
        "fold-move": 2,
    }
