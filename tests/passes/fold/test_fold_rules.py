"""What each rule of the fold writes: before and expected as ONNX text, with counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq

CASES: dict[str, tuple[Literal["ort", "qdq"], str, str, dict[str, int]]] = {
    "conv_relu": (
        "ort",
        """
        agraph (uint8[1,1,3] q) => (uint8[1,2,3] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, int8[2,1,1] w = {2,
        -3}, float[2] sw = {0.5, 0.25}, int32[2] b = {8, -8}, float[2] sb = {0.25, 0.125}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear <axis: int = 0> (w, sw)
  bf = DequantizeLinear <axis: int = 0> (b, sb)
  c = Conv (x, wf, bf)
  r = Relu (c)
  y = QuantizeLinear (r, sy, zy)
}
        """,
        """
        agraph (uint8[1,1,3] q) => (uint8[1,2,3] y)
   <float scale = {0.5}, uint8 zero_point = {100}, int8[2,1,1] c_weights_codes = {2,-3},
        float[2] scale_1 = {0.5,0.25}, int8[2] zero_point_1 = {0,0},
        float scale_2 = {0.25}, uint8 zero_point_2 = {7}, int32[2] c_bias = {8,-8},
        uint8 code_limit = {255}>
{
   c_qlinearconv = QLinearConv (q, scale, zero_point, c_weights_codes, scale_1,
        zero_point_1, scale_2, zero_point_2, c_bias)
   y = Clip (c_qlinearconv, zero_point_2, code_limit)
}
        """,
        {"fold-clamp": 1, "fold-linear": 1},
    ),
    "int8_io": (
        "ort",
        """
        agraph (int8[1,1,3] q) => (int8[1,1,3] y)
<float sx = {0.5}, int8 zx = {3}, float sy = {0.25}, int8 zy = {-5}, int8[1,1,1] w = {2},
        float sw = {0.5}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  c = Conv (x, wf)
  y = QuantizeLinear (c, sy, zy)
}
        """,
        """
        agraph (int8[1,1,3] q) => (int8[1,1,3] y)
   <float scale = {0.5}, int8 zero_point = {3}, uint8 zero_point_1 = {131},
        int8[1,1,1] c_weights_codes = {2}, int8 zero_point_2 = {0}, float scale_1 = {0.25},
        uint8 zero_point_3 = {123}, int8 zero_point_4 = {-5}>
{
   q_dequantizelinear = DequantizeLinear (q, scale, zero_point)
   q_quantizelinear = QuantizeLinear (q_dequantizelinear, scale, zero_point_1)
   y_u8 = QLinearConv (q_quantizelinear, scale, zero_point_1, c_weights_codes,
        scale, zero_point_2, scale_1, zero_point_3)
   y_dequantizelinear = DequantizeLinear (y_u8, scale_1, zero_point_3)
   y = QuantizeLinear (y_dequantizelinear, scale_1, zero_point_4)
}
        """,
        {"fold-dequantize": 1, "fold-linear": 1, "fold-quantize": 1},
    ),
    "weights_behind_transpose": (
        "ort",
        """
        agraph (uint8[2,3] q) => (uint8[2,2] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, int8[2,3] w = {1,
        2, 3, 4, 5, 6}, float[2] sw = {0.5, 0.25}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear <axis: int = 0> (w, sw)
  wt = Transpose <perm: ints = [1, 0]> (wf)
  m = MatMul (x, wt)
  y = QuantizeLinear (m, sy, zy)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[2,2] y)
   <float scale = {0.5}, uint8 zero_point = {100},
        int8[3,2] m_weights_codes = {1,4,2,5,3,6}, float[2] scale_1 = {0.5,0.25},
        int8[2] zero_point_1 = {0,0}, float scale_2 = {0.25}, uint8 zero_point_2 = {7}>
{
   y = QLinearMatMul (q, scale, zero_point, m_weights_codes, scale_1, zero_point_1,
        scale_2, zero_point_2)
}
        """,
        {"fold-linear": 1},
    ),
    "matmul_bias_no_q": (
        "ort",
        """
        agraph (uint8[2,3] q) => (float[2,2] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, int8[3,2] w = {1,
        2, 3, 4, 5, 6}, float sw = {0.5}, float[2] b = {1.5, -2.5}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  m = MatMul (x, wf)
  y = Add (b, m)
}
        """,
        """
        agraph (uint8[2,3] q) => (float[2,2] y)
   <float sy = {0.25}, uint8 zy = {7}, int8[3,2] y_weights_codes = {1,2,3,4,5,6},
        float scale = {0.5}, uint8 zero_point = {100}, int8 zero_point_1 = {0},
        float[2] y_bias = {1.5,-2.5}>
{
   y = com.microsoft.MatMulIntegerToFloat (q, y_weights_codes, scale, scale, zero_point,
        zero_point_1, y_bias)
}
        """,
        {"fold-linear": 1},
    ),
    "matmul_bias_3d": (
        "ort",
        """
        agraph (uint8[N,2,3] q) => (uint8[N,2,2] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, int8[3,2] w = {1,
        2, 3, 4, 5, 6}, float sw = {0.5}, float[2] b = {1.5, -2.5}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  m = MatMul (x, wf)
  a = Add (m, b)
  y = QuantizeLinear (a, sy, zy)
}
        """,
        """
        agraph (uint8[N,2,3] q) => (uint8[N,2,2] y)
   <int64[2] shape = {-1,3}, float scale = {0.5}, uint8 zero_point = {100},
        int8[3,2] a_weights_codes = {1,2,3,4,5,6}, int8 zero_point_1 = {0},
        int32[2] a_bias = {6,-10}, float scale_1 = {0.25}, uint8 zero_point_2 = {7},
        int64[3] shape_1 = {-1,2,2}>
{
   a_reshape = Reshape (q, shape)
   a_qgemm = com.microsoft.QGemm (a_reshape, scale, zero_point, a_weights_codes, scale,
        zero_point_1, a_bias, scale_1, zero_point_2)
   y = Reshape (a_qgemm, shape_1)
}
        """,
        {"fold-linear": 1},
    ),
    "gemm": (
        "ort",
        """
        agraph (uint8[2,3] q) => (uint8[2,2] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, int8[2,3] w = {1,
        2, 3, 4, 5, 6}, float sw = {0.5}, float[2] b = {1.5, -2.5}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  a = Gemm <alpha: float = 0.5, beta: float = 2.0, transB: int = 1> (x, wf, b)
  y = QuantizeLinear (a, sy, zy)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[2,2] y)
   <float scale = {0.5}, uint8 zero_point = {100},
        int8[3,2] a_weights_codes = {1,4,2,5,3,6}, float scale_1 = {0.25},
        int8 zero_point_1 = {0}, int32[2] a_bias = {24,-40}, uint8 zero_point_2 = {7}>
{
   y = com.microsoft.QGemm (q, scale, zero_point, a_weights_codes, scale_1, zero_point_1,
        a_bias, scale_1, zero_point_2)
}
        """,
        {"fold-linear": 1},
    ),
    "residual": (
        "ort",
        """
        agraph (uint8[2,3] q, uint8[2,3] p) => (uint8[2,3] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}>
{
  a = DequantizeLinear (q, sx, zx)
  b = DequantizeLinear (p, sy, zy)
  c = Add (a, b)
  y = QuantizeLinear (c, sx, zx)
}
        """,
        """
        agraph (uint8[2,3] q, uint8[2,3] p) => (uint8[2,3] y)
   <float scale = {0.5}, uint8 zero_point = {100}, float scale_1 = {0.25},
        uint8 zero_point_1 = {7}>
{
   y = com.microsoft.QLinearAdd (q, scale, zero_point, p, scale_1, zero_point_1, scale,
        zero_point)
}
        """,
        {"fold-sum": 1},
    ),
    "mul_scalar_constant": (
        "ort",
        """
        agraph (uint8[2,3] q) => (float[2,3] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, float half = {0.5}>
{
  a = DequantizeLinear (q, sx, zx)
  b = Mul (a, half)
  y = Erf (b)
}
        """,
        """
        agraph (uint8[2,3] q) => (float[2,3] y)
   <float sy = {0.25}, uint8 zy = {7}, float scale = {0.25}, uint8 zero_point = {100}>
{
   b = DequantizeLinear (q, scale, zero_point)
   y = Erf (b)
}
        """,
        {"fold-alias": 1},
    ),
    "transpose_between": (
        "ort",
        """
        agraph (float[1,1,2,3] f) => (uint8[1,2,3,1] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7},
        int8[1,1,1,1] w = {2}, float sw = {0.5}>
{
  q = QuantizeLinear (f, sx, zx)
  qt = Transpose <perm: ints = [0, 3, 1, 2]> (q)
  x = DequantizeLinear (qt, sx, zx)
  back = Transpose <perm: ints = [0, 2, 3, 1]> (x)
  wf = DequantizeLinear (w, sw)
  c = Conv (back, wf)
  t = Transpose <perm: ints = [0, 2, 3, 1]> (c)
  y = QuantizeLinear (t, sy, zy)
}
        """,
        """
        agraph (float[1,1,2,3] f) => (uint8[1,2,3,1] y)
   <float sx = {0.5}, uint8 zx = {100}, float scale = {0.5}, uint8 zero_point = {100},
        int8[1,1,1,1] c_weights_codes = {2}, int8 zero_point_1 = {0},
        float scale_1 = {0.25}, uint8 zero_point_2 = {7}>
{
   q = QuantizeLinear (f, sx, zx)
   qt_codes = Transpose <perm: ints = [0, 3, 1, 2]> (q)
   back_codes = Transpose <perm: ints = [0, 2, 3, 1]> (qt_codes)
   c_qlinearconv = QLinearConv (back_codes, scale, zero_point, c_weights_codes, scale,
        zero_point_1, scale_1, zero_point_2)
   y = Transpose <perm: ints = [0, 2, 3, 1]> (c_qlinearconv)
}
        """,
        {"fold-linear": 1, "fold-move": 3},
    ),
    "unknown_op": (
        "ort",
        """
        agraph (uint8[2,3] q) => (uint8[2,3] y, float[2,3] e)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}>
{
  x = DequantizeLinear (q, sx, zx)
  r = Relu (x)
  e = Erf (r)
  d = Add (r, r)
  y = QuantizeLinear (d, sy, zy)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[2,3] y, float[2,3] e)
   <uint8 code_limit = {100}, uint8 code_limit_1 = {255}, float scale = {0.5},
        float scale_1 = {0.25}, uint8 zero_point = {7}>
{
   r_clip = Clip (q, code_limit, code_limit_1)
   r = DequantizeLinear (r_clip, scale, code_limit)
   e = Erf (r)
   y = com.microsoft.QLinearAdd (r_clip, scale, code_limit, r_clip, scale, code_limit,
        scale_1, zero_point)
}
        """,
        {"fold-sum": 1, "fold-clamp": 1},
    ),
    "pad": (
        "ort",
        """
        agraph (uint8[2,3] q) => (uint8[2,5] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, int64[4] pads = {0,
        1, 0, 1}>
{
  x = DequantizeLinear (q, sx, zx)
  p = Pad (x, pads)
  y = QuantizeLinear (p, sx, zx)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[2,5] y)
   <float sy = {0.25}, uint8 zy = {7}, int64[4] pads = {0,1,0,1}, uint8 p_fill = {100}>
{
   y = Pad (q, pads, p_fill)
}
        """,
        {"fold-move": 1},
    ),
    "concat_mixed": (
        "ort",
        """
        agraph (uint8[2,3] q, uint8[2,3] p) => (uint8[2,7] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7},
        float[2,1] k = {1.0, 2.0}>
{
  a = DequantizeLinear (q, sx, zx)
  b = DequantizeLinear (p, sy, zy)
  c = Concat <axis: int = 1> (a, b, k)
  y = QuantizeLinear (c, sx, zx)
}
        """,
        """
        agraph (uint8[2,3] q, uint8[2,3] p) => (uint8[2,7] y)
   <uint8[2,1] c_part_codes = {102,104}, float scale = {0.5}, uint8 zero_point = {100},
        float scale_1 = {0.25}, uint8 zero_point_1 = {7}>
{
   y = com.microsoft.QLinearConcat <axis: int = 1> (scale, zero_point, q, scale,
        zero_point, p, scale_1, zero_point_1, c_part_codes, scale, zero_point)
}
        """,
        {"fold-concat": 1},
    ),
    "clip6": (
        "ort",
        """
        agraph (uint8[2,3] q) => (uint8[2,3] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, float lo = {0.0},
        float hi = {6.0}>
{
  x = DequantizeLinear (q, sy, zy)
  c = Clip (x, lo, hi)
  y = QuantizeLinear (c, sy, zy)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[2,3] y)
   <float sx = {0.5}, uint8 zx = {100}, uint8 code_limit = {7}, uint8 code_limit_1 = {31}>
{
   y = Clip (q, code_limit, code_limit_1)
}
        """,
        {"fold-clamp": 1},
    ),
    "softmax": (
        "ort",
        """
        agraph (uint8[2,3] q) => (uint8[2,3] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}>
{
  x = DequantizeLinear (q, sx, zx)
  c = Softmax (x)
  y = QuantizeLinear (c, sy, zy)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[2,3] y)
   <float[2] scale = {0.5, 0.5}, uint8[2] zero_point = {100, 100}, int64[2] shape = {0, 0},
    float scale_1 = {0.25}, uint8 zero_point_1 = {7}>
{
   c_dequantizelinear = DequantizeLinear <axis: int = 0> (q, scale, zero_point)
   c_reshape = Reshape (c_dequantizelinear, shape)
   c_softmax = Softmax (c_reshape)
   y = QuantizeLinear (c_softmax, scale_1, zero_point_1)
}
        """,
        {"fold-softmax": 1},
    ),
    "space_to_depth": (
        "ort",
        """
        agraph (uint8[1,1,2,2] q) => (uint8[1,4,1,1] y)
<float sx = {0.5}, uint8 zx = {100}>
{
  x = DequantizeLinear (q, sx, zx)
  c = SpaceToDepth <blocksize: int = 2> (x)
  y = QuantizeLinear (c, sx, zx)
}
        """,
        """
        agraph (uint8[1,1,2,2] q) => (uint8[1,4,1,1] y)
{
   c_cast = Cast <to: int = 1> (q)
   c_spacetodepth = SpaceToDepth <blocksize: int = 2> (c_cast)
   y = Cast <to: int = 2> (c_spacetodepth)
}
        """,
        {"fold-move": 1},
    ),
    "requantize": (
        "ort",
        """
        agraph (uint8[2,3] q) => (uint8[3,2] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}>
{
  x = DequantizeLinear (q, sx, zx)
  c = Transpose <perm: ints = [1, 0]> (x)
  y = QuantizeLinear (c, sy, zy)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[3,2] y)
   <float scale = {0.5}, uint8 zero_point = {100}, float scale_1 = {0.25}, uint8 zero_point_1 = {7}>
{
   c_codes = Transpose <perm: ints = [1, 0]> (q)
   y_dequantizelinear = DequantizeLinear (c_codes, scale, zero_point)
   y = QuantizeLinear (y_dequantizelinear, scale_1, zero_point_1)
}
        """,
        {"fold-move": 1, "fold-requantize": 1},
    ),
    "conv_relu_qdq": (
        "qdq",
        """
        agraph (uint8[1,1,3] q) => (uint8[1,2,3] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7}, int8[2,1,1] w = {2,
        -3}, float[2] sw = {0.5, 0.25}, float[2] b = {2.0, -1.0}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear <axis: int = 0> (w, sw)
  c = Conv (x, wf, b)
  r = Relu (c)
  y = QuantizeLinear (r, sy, zy)
}
        """,
        """
        agraph (uint8[1,1,3] q) => (uint8[1,2,3] y)
   <float scale = {0.5}, uint8 zero_point = {100}, int8[2,1,1] c_weights_codes = {2,-3},
        float[2] scale_1 = {0.5,0.25}, int8[2] zero_point_1 = {0,0},
        int32[2] c_bias = {8,-8}, float[2] scale_2 = {0.25,0.125}, float scale_3 = {0.25},
        uint8 zero_point_2 = {7}>
{
   c_dequantizelinear = DequantizeLinear (q, scale, zero_point)
   c_dequantizelinear_1 = DequantizeLinear <axis: int = 0> (c_weights_codes, scale_1,
        zero_point_1)
   c_dequantizelinear_2 = DequantizeLinear <axis: int = 0> (c_bias, scale_2)
   c = Conv (c_dequantizelinear, c_dequantizelinear_1, c_dequantizelinear_2)
   c_quantizelinear = QuantizeLinear (c, scale_3, zero_point_2)
   r_dequantizelinear = DequantizeLinear (c_quantizelinear, scale_3, zero_point_2)
   r = Relu (r_dequantizelinear)
   y = QuantizeLinear (r, scale_3, zero_point_2)
}
        """,
        {"fold-clamp": 1, "fold-linear": 1},
    ),
    "u8_weights_qdq": (
        "qdq",
        """
        agraph (uint8[2,3] q) => (uint8[2,2] y)
<float sx = {0.5}, uint8 zx = {100}, float sy = {0.25}, uint8 zy = {7},
        uint8[3,2] w = {129, 130, 131, 120, 121, 122}, float sw = {0.5}, uint8 zw = {128}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw, zw)
  m = MatMul (x, wf)
  y = QuantizeLinear (m, sy, zy)
}
        """,
        """
        agraph (uint8[2,3] q) => (uint8[2,2] y)
   <float scale = {0.5}, uint8 zero_point = {100},
        int8[3,2] m_weights_codes = {1,2,3,-8,-7,-6}, int8 zero_point_1 = {0},
        float scale_1 = {0.25}, uint8 zero_point_2 = {7}>
{
   m_dequantizelinear = DequantizeLinear (q, scale, zero_point)
   m_dequantizelinear_1 = DequantizeLinear (m_weights_codes, scale, zero_point_1)
   m = MatMul (m_dequantizelinear, m_dequantizelinear_1)
   y = QuantizeLinear (m, scale_1, zero_point_2)
}
        """,
        {"fold-linear": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_rewrites_as_written(
    name: str,
    parse: Callable[..., ir.Model],
    assert_text: Callable[[ir.Model, str], None],
    apply_pass: Callable[..., PassResult],
) -> None:
    target, before, expected, rules = CASES[name]
    model = parse(before)
    result = apply_pass(FoldQdq(target), model)
    assert_text(model, expected)
    assert {key: n for key, n in result.rules.items() if key.startswith("fold-")} == rules
