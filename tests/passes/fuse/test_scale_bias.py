"""fold-scale-bias: broadcasting, refusals, and random chains of linear operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]
Rewrite = Callable[..., PassResult]

CONV = "float[2,3,1] w = {1,-2,3,-4,5,6}"
DENSE = "float[3,2] w = {1,-2,3,-4,5,6}"
TWO = "float[2] k = {2, -3}"
COLUMN = "float[1,2,1] k = {2, -3}"


def _x(*shape: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(5).normal(size=shape).astype(np.float32)}


def _shape_of(declaration: str) -> tuple[int, ...]:
    return tuple(
        map(int, declaration[declaration.index("[") + 1 : declaration.index("]")].split(","))
    )


def _model(parse: Parse, data: str, constants: str, body: str) -> ir.Model:
    """The model, with all shapes inferred."""
    model = parse(f"g ({data}) => (float y) <{constants}> {{ {body} }}")
    model.graph.outputs[0].shape = None
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


FOLDING = {
    "mul_conv": ("float[2,3,4] x", f"{CONV}, {COLUMN}", "t = Conv(x, w)  y = Mul(k, t)", ["Conv"]),
    "div_conv": ("float[2,3,4] x", f"{CONV}, {COLUMN}", "t = Conv(x, w)  y = Div(t, k)", ["Conv"]),
    "add_conv": ("float[2,3,4] x", f"{CONV}, {COLUMN}", "t = Conv(x, w)  y = Add(t, k)", ["Conv"]),
    "sub_conv": ("float[2,3,4] x", f"{CONV}, {COLUMN}", "t = Conv(x, w)  y = Sub(t, k)", ["Conv"]),
    "reversed_sub": (
        "float[2,3,4] x",
        f"{CONV}, {COLUMN}",
        "t = Conv(x, w)  y = Sub(k, t)",
        ["Conv"],
    ),
    "rank_below": (
        "float[2,3,4] x",
        f"{CONV}, float[2,1] k = {{2,3}}",
        "t = Conv(x, w)  y = Mul(t, k)",
        ["Conv"],
    ),
    "scalar": (
        "float[2,3,4] x",
        f"{CONV}, float k = {{2}}",
        "t = Conv(x, w)  y = Mul(t, k)",
        ["Conv"],
    ),
    "chain": (
        "float[2,3,4] x",
        f"{CONV}, {COLUMN}, float[1] h = {{0.5}}",
        "t = Conv(x, w)  u = Add(t, k)  v = Mul(u, h)  y = Sub(v, k)",
        ["Conv"],
    ),
    "matmul_chain": (
        "float[2,4,3] x",
        f"{DENSE}, {TWO}, float h = {{0.5}}",
        "t = MatMul(x, w)  u = Add(k, t)  v = Mul(u, h)  y = Sub(v, k)",
        ["MatMul", "Add"],
    ),
    "squeezed": (
        "float[2,3,4,1] x",
        "float[2,3,1,1] w = {1,-2,3,-4,5,6}, int64[1] a = {3}, float[2,1] k = {2,-3}",
        "t = Conv(x, w)  s = Squeeze(t, a)  u = Mul(s, k)  y = Add(u, k)",
        ["Conv", "Squeeze"],
    ),
    "squeezed_batch": (
        "float[1,3,4,1] x",
        "float[2,3,1,1] w = {1,-2,3,-4,5,6}, int64[2] a = {-1,0}, float[2,1] k = {2,-3}",
        "t = Conv(x, w)  s = Squeeze(t, a)  y = Mul(s, k)",
        ["Conv", "Squeeze"],
    ),
    "matmul_scale": (
        "float[2,4,3] x",
        f"{DENSE}, {TWO}",
        "t = MatMul(x, w)  y = Mul(t, k)",
        ["MatMul"],
    ),
    "scale_before_conv": (
        "float[2,3,4] x",
        f"{CONV}, float[3,1] k = {{2,3,4}}",
        "t = Mul(x, k)  y = Conv<pads = [1,1]>(t, w)",
        ["Conv"],
    ),
    "normalized_image": (
        "float[2,3,4] x",
        f"{CONV}, float[3,1] k = {{2,3,4}}, float[1,3,1] s = {{4,5,6}}",
        "c = Sub(x, k)  t = Div(c, s)  y = Conv(t, w)",
        ["Conv"],
    ),
    "padded_image_keeps_the_shift": (
        "float[2,3,4] x",
        f"{CONV}, float[3,1] k = {{2,3,4}}, float[1,3,1] s = {{4,5,6}}",
        "c = Sub(x, k)  t = Div(c, s)  y = Conv<pads = [1,1]>(t, w)",
        ["Sub", "Conv"],
    ),
    "grouped_before": (
        "float[1,4,4] x",
        "float[2,2,1] w = {1,2,3,4}, float[4,1] k = {2,3,4,5}",
        "t = Mul(x, k)  y = Conv<group = 2>(t, w)",
        ["Conv"],
    ),
    "gemm_trans_a_before": (
        "float[3,4] x",
        f"{DENSE}, float[3,1] k = {{2,3,4}}",
        "t = Mul(x, k)  y = Gemm<transA = 1>(t, w)",
        ["Gemm"],
    ),
    "shift_before_matmul_add": (
        "float[4,3] x",
        f"{DENSE}, float[3] h = {{1,2,3}}, {TWO}",
        "t = Add(x, h)  u = MatMul(t, w)  y = Add(u, k)",
        ["MatMul", "Add"],
    ),
    "reversed_sub_from_matmul": (
        "float[4,3] x",
        f"{DENSE}, {TWO}",
        "t = MatMul(x, w)  y = Sub(k, t)",
        ["MatMul", "Add"],
    ),
}


@pytest.mark.parametrize("name", FOLDING)
def test_folds(parse: Parse, rewrite: Rewrite, name: str) -> None:
    data, constants, body, ops = FOLDING[name]
    model = _model(parse, data, constants, body)
    result = rewrite("fold-scale-bias", model, _x(*_shape_of(data)))
    assert [node.op_type for node in result.model.graph] == ops


REFUSED = {
    "result_gets_more_channels": (
        "float[1,3,4] x",
        "float[1,3,1] w = {1,2,3}, float[1,2,1] k = {2,3}",
        "t = Conv(x, w)  y = Add(t, k)",
    ),
    "result_gets_a_higher_rank": (
        "float[1,3,4] x",
        f"{CONV}, float[1,1,1,1] k = {{2}}",
        "t = Conv(x, w)  y = Mul(t, k)",
    ),
    "result_gets_a_larger_batch": (
        "float[1,3,4] x",
        f"{CONV}, float[2,1,1] k = {{2,3}}",
        "t = Conv(x, w)  y = Mul(t, k)",
    ),
    "along_another_axis": (
        "float[1,3,2] x",
        f"{CONV}, float[2] k = {{2,3}}",
        "t = Conv(x, w)  y = Mul(t, k)",
    ),
    "division_by_zero": (
        "float[1,3,4] x",
        f"{CONV}, float[2,1] k = {{2,0}}",
        "t = Conv(x, w)  y = Div(t, k)",
    ),
    "constant_divided": (
        "float[1,3,4] x",
        f"{CONV}, float[2,1] k = {{2,1}}",
        "t = Conv(x, w)  y = Div(k, t)",
    ),
    "overflow": (
        "float[1,3,4] x",
        f"{CONV}, float k = {{1e38}}",
        "t = Conv(x, w)  y = Mul(t, k)",
    ),
    "subnormal": (
        "float[1,3,4] x",
        f"{CONV}, float k = {{1}}",
        "t = Conv(x, w)  y = Mul(t, k)",
    ),
    "shift_before_padding": (
        "float[1,3,4] x",
        f"{CONV}, float k = {{2}}",
        "t = Add(x, k)  y = Conv<pads = [1,0]>(t, w)",
    ),
    "source_is_broadcast": (
        "float[1,1,4] x",
        f"{CONV}, float[3,1] k = {{2,3,4}}",
        "t = Mul(x, k)  y = Conv(t, w)",
    ),
    "source_of_lower_rank": (
        "float[3] x",
        f"{DENSE}, float[1,1] k = {{2}}",
        "t = Mul(x, k)  y = MatMul(t, w)",
    ),
    "the_bias_of_a_matmul": (
        "float[1,3] x",
        f"{DENSE}, {TWO}",
        "t = MatMul(x, w)  y = Add(t, k)",
    ),
    "bias_along_rows": (
        "float[2,3] x",
        f"{DENSE}, float[2,1] k = {{2,3}}, float h = {{2}}",
        "t = Gemm(x, w, k)  y = Mul(t, h)",
    ),
    "squeezed_and_along_another_axis": (
        "float[1,3,2,1] x",
        "float[2,3,1,1] w = {1,-2,3,-4,5,6}, int64[1] a = {3}, float[2] k = {2,-3}",
        "t = Conv(x, w)  s = Squeeze(t, a)  y = Mul(s, k)",
    ),
    "squeezed_and_kept": (
        "float[1,3,2,1] x",
        "float[2,3,1,1] w = {1,-2,3,-4,5,6}, int64[1] a = {3}, float[2,1] k = {2,-3}",
        "t = Conv(x, w)  s = Squeeze(t, a)  m = Mul(s, k)  y = Add(m, s)",
    ),
    "squared": ("float[1,3,4] x", CONV, "t = Conv(x, w)  y = Mul(t, t)"),
    "not_constant": (
        "float[1,3,4] x",
        CONV,
        "t = Conv(x, w)  s = ReduceMax<keepdims = 0>(x)  y = Mul(t, s)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(
    parse: Parse, apply_pass: Callable[..., PassResult], name: str, text_of: Callable[..., str]
) -> None:
    data, constants, body = REFUSED[name]
    model = _model(parse, data, constants, body)
    if name == "subnormal":
        # The parser of onnx before 1.23 does not read such a number.
        model.graph.initializers["k"].const_value = ir.tensor(np.float32(1e-44), name="k")
    before = text_of(model)
    assert not apply_pass("fold-scale-bias", model).modified
    assert text_of(model) == before


def test_a_shared_bias_is_cloned(parse: Parse, rewrite: Rewrite) -> None:
    model = parse(
        """g (float[1,3,4] x) => (float[1,2,4] y)
        <float[2,3,1] w = {1,2,3,4,5,6}, float[2] b = {1,2}, float s = {3}>
        { t = Conv(x, w, b)  u = Mul(t, s)  v = Conv(x, w, b)  y = Add(u, v) }"""
    )
    rewrite("fold-scale-bias", model, _x(1, 3, 4))
    assert [node.op_type for node in model.graph] == ["Conv", "Conv", "Add"]
    assert {"w", "b", "w_1", "b_1"} <= set(model.graph.initializers)


def test_float16_that_overflows_stays(parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    # 0x7800 = 32768, 0x4400 = 4: the product is beyond float16's 65504.
    text = """g (float16[1,1] x) => (float16[1,1] y)
        <float16[1,1] w = {30720}, float16 s = {17408}>
        { t = MatMul(x, w)  y = Mul(t, s) }"""
    assert not apply_pass("fold-scale-bias", parse(text)).modified
    small = text.replace("17408", "14336")  # 0.5
    assert apply_pass("fold-scale-bias", parse(small)).modified


@st.composite
def _chains(draw: st.DrawFn) -> tuple[str, tuple[int, ...], int]:
    """A chain of Conv, ConvTranspose, arithmetic and BatchNormalization as ONNX text."""
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    channels = draw(st.sampled_from([1, 2, 4]))
    shape = (draw(st.integers(1, 2)), channels, 6, 5)
    constants: list[str] = []
    body: list[str] = []

    def constant(*dims: int, low: float = -2.0) -> str:
        name = f"c{len(constants)}"
        data = rng.uniform(low, 2.0, size=dims).astype(np.float32).reshape(-1)
        values = ",".join(f"{each:.6f}" for each in data)
        constants.append(f"float[{','.join(map(str, dims))}] {name} = {{{values}}}")
        return name

    value = "x"
    for index in range(draw(st.integers(2, 6))):
        op = draw(
            st.sampled_from(["Conv", "ConvTranspose", "Mul", "Add", "Sub", "Div", "BN", "Relu"])
        )
        operand = draw(st.sampled_from([(1,), (channels, 1, 1), (1, channels, 1, 1)]))
        pads = draw(st.sampled_from(["", "<pads = [1,0,0,1]>"]))
        groups = draw(st.sampled_from([1, channels]))
        result = f"t{index}"
        match op:
            case "Conv" | "ConvTranspose":
                weights = constant(channels, channels // groups, 1, 2)
                pads = pads if op == "Conv" else ""
                attributes = f"<group = {groups}{', ' + pads[1:-1] if pads else ''}>"
                bias = f", {constant(channels)}" if draw(st.booleans()) else ""
                body.append(f"{result} = {op}{attributes}({value}, {weights}{bias})")
            case "BN":
                names = [constant(channels), constant(channels), constant(channels)]
                variance = constant(channels, low=0.5)
                body.append(
                    f"{result} = BatchNormalization({value}, {', '.join(names)}, {variance})"
                )
            case "Relu":
                body.append(f"{result} = Relu({value})")
            case _:
                number = constant(*operand, low=0.5)
                body.append(f"{result} = {op}({value}, {number})")
        value = result
    joined = "  ".join(body)
    declared = f"<{', '.join(constants)}>" if constants else ""
    sizes = ",".join(map(str, shape))
    return (
        f"g (float[{sizes}] x) => (float[?,?,?,?] {value}) {declared} {{ {joined} }}",
        shape,
        seed,
    )


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(chain=_chains())
def test_random_chains(
    parse: Parse, rewrite: Rewrite, chain: tuple[str, tuple[int, ...], int]
) -> None:
    text, shape, seed = chain
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parse(text))))
    feed = {"x": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}
    rewrite("fold-scale-bias,fold-batch-norm,fold-scale-bias", model, feed)


def test_the_half_of_a_gelu_stays(parse: Parse, rewrite: Rewrite) -> None:
    gelu = "d = Div(x, r)  e = Erf(d)  a = Add(e, o)  p = Mul(x, a)  t = Mul(p, h)"
    constants = f"{DENSE}, float r = {{1.4142135}}, float o = {{1}}, float h = {{0.5}}"
    model = _model(parse, "float[4,3] x", constants, f"{gelu}  y = MatMul(t, w)")
    assert not rewrite("fold-scale-bias", model, _x(4, 3)).rules
