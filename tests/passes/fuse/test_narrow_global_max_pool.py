from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.fuse.narrow_global_max_pool import NarrowGlobalMaxPool
from onnxfold.passes.simplify.infer_shapes import InferShapes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
AssertText = Callable[[ir.Model, str], None]
Apply = Callable[[Pass | str, ir.Model], PassResult]


def close(model: ir.Model, rewritten: ir.Model, feed: dict[str, Array]) -> None:
    """Both compute the same, within the gate of REASSOCIATED, optimizations off and on."""
    for config in (REFERENCE, DEPLOYMENT):
        wanted, got = Session(model, config).run(feed), Session(rewritten, config).run(feed)
        assert list(wanted) == list(got)
        for name, array in wanted.items():
            assert got[name].shape == array.shape
            tolerance = 1e-5 * np.abs(array).max(initial=0) + 1e-7
            assert np.abs(got[name] - array).max(initial=0) <= tolerance, name


def feed_of(*shape: int, seed: int = 0, scale: float = 3.0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {"x": (scale * generator.standard_normal(shape)).astype(np.float32)}


def rewrite(parse: Parse, apply_pass: Apply, text: str, opset: int = 21) -> ir.Model:
    """Infer shapes, narrow, and hold the result against the original on x of [2,3,8]."""
    model = parse(text, opset)
    InferShapes().run(model)
    apply_pass(NarrowGlobalMaxPool(), model)
    for seed in range(3):
        close(parse(text, opset), model, feed_of(2, 3, 8, seed=seed))
    return model


def test_rising(parse: Parse, assert_text: AssertText, apply_pass: Apply) -> None:
    header = "g (float[N,3,8] x) => (float[N,3,1] y) <float[3,1] c = {1, 2, 3}>"
    text = f"{header} {{ a = Add(x, c)  t = Tanh(a)  y = GlobalMaxPool(t) }}"
    model = parse(text)
    InferShapes().run(model)
    result = apply_pass("narrow-global-max-pool", model)
    assert_text(
        model,
        f"{header} {{ x_max = GlobalMaxPool(x)  a_narrow = Add(x_max, c)  y = Tanh(a_narrow) }}",
    )
    assert result.rules == {"narrow-global-max-pool": 1}
    assert result.statistics == {"inserted": 3, "replaced": 1, "erased": 3}
    close(parse(text), model, feed_of(2, 3, 8))


def test_falling(parse: Parse, assert_text: AssertText, apply_pass: Apply) -> None:
    header = "g (float[N,3,8] x) => (float[N,3,1] y) <float c = {-2}"
    text = f"{header}> {{ a = Mul(x, c)  t = Sigmoid(a)  y = GlobalMaxPool(t) }}"
    model = rewrite(parse, apply_pass, text)
    assert_text(
        model,
        f"""{header}, int64[1] x_min_axes = {{2}}>
        {{ x_min = ReduceMin<keepdims = 1>(x, x_min_axes)  a_narrow = Mul(x_min, c)
           y = Sigmoid(a_narrow) }}""",
    )


def test_valley(parse: Parse, assert_text: AssertText, apply_pass: Apply) -> None:
    header = "g (float[N,3,8] x) => (float[N,3,1] y)"
    model = rewrite(
        parse, apply_pass, f"{header} {{ s = Sigmoid(x)  m = Mul(x, s)  y = GlobalMaxPool(m) }}"
    )
    assert_text(
        model,
        f"""{header} <int64[1] x_max_axes = {{2}}, int64[1] x_min_axes = {{2}}>
        {{ x_max = ReduceMax<keepdims = 1>(x, x_max_axes)
           x_min = ReduceMin<keepdims = 1>(x, x_min_axes)
           x_extremes = Concat<axis = 2>(x_max, x_min)
           s_narrow = Sigmoid(x_extremes)  m_narrow = Mul(x_extremes, s_narrow)
           y = GlobalMaxPool(m_narrow) }}""",
    )
    assert [str(dim) for dim in model.graph.node("x_extremes").outputs[0].shape or ()] == [
        "N", "3", "2"
    ]  # fmt: skip


def test_reduce_max_without_its_axes(
    parse: Parse, assert_text: AssertText, apply_pass: Apply
) -> None:
    """Before opset 18 axes are an attribute; a constant of full rank needs the axes kept."""
    header = "g (float[2,3,8] x) => (float[3] y) <float[1,3,1] c = {1, 2, 3}>"
    model = rewrite(
        parse,
        apply_pass,
        f"{header} {{ a = Mul(c, x)  y = ReduceMax<axes = [0, -1], keepdims = 0>(a) }}",
        opset=17,
    )
    assert_text(
        model,
        f"""{header} {{ x_max = ReduceMax<axes = [0, 2], keepdims = 1>(x)
           a_narrow = Mul(c, x_max)  y = ReduceMax<axes = [0, 2], keepdims = 0>(a_narrow) }}""",
    )


@pytest.mark.parametrize("op", ["Gelu", "HardSwish", "Mish", "Tanh", "Neg", "Abs"])
@pytest.mark.parametrize(
    "pool",
    [
        "float[N,C,1,1] y) <int64[2] axes = {-1, 2}> { f = OP(x) y = ReduceMax(f, axes) }",
        "float[N,C] y) <int64[2] axes = {2, 3}>{ f = OP(x) y = ReduceMax<keepdims=0>(f, axes) }",
        "float[N,C,1,1] y) { f = OP(x) y = GlobalMaxPool(f) }",
        "float[N,C,1,1] y) { f = OP(x) y = MaxPool<kernel_shape=[4,5]>(f) }",
    ],
)
def test_two_axes(parse: Parse, apply_pass: Apply, op: str, pool: str) -> None:
    text = f"g (float[N,C,4,5] x) => ({pool.replace('OP', op)}"
    model = parse(text)
    InferShapes().run(model)
    assert apply_pass(NarrowGlobalMaxPool(), model).rules == {"narrow-global-max-pool": 1}
    model = ir.from_proto(ir.to_proto(model))
    close(parse(text), model, feed_of(2, 3, 4, 5))


def test_the_longest_region_of_known_trend_wins(parse: Parse, apply_pass: Apply) -> None:
    model = rewrite(
        parse,
        apply_pass,
        """g (float[N,3,8] x) => (float[N,3,1] y) <float one = {1}>
        { a = Abs(x)  b = Sub(one, a)  d = Tanh(b)  y = GlobalMaxPool(d) }""",
    )
    assert [node.op_type for node in model.graph] == ["Abs", "ReduceMin", "Sub", "Tanh"]


def test_an_activation_in_a_body(parse: Parse, apply_pass: Apply) -> None:
    text = """g (float[2,3,8] x, bool c) => (float[2,3,1] y) <float k = {2}>
        { w = Tanh(x)
          y = If(c) <then_branch = t () => (float[2,3,1] u) {
                        a = Mul(w, k)  b = Gelu(a)  u = GlobalMaxPool(b) },
                     else_branch = e () => (float[2,3,1] v) { v = GlobalMaxPool(x) }> }"""
    model = parse(text)
    InferShapes().run(model)
    assert apply_pass(NarrowGlobalMaxPool(), model).rules == {"narrow-global-max-pool": 1}
    assert [node.op_type for node in model.graph] == ["Tanh", "If"]
    close(parse(text), model, {**feed_of(2, 3, 8), "c": np.array(True)})


H8 = "g (float[N,3,8] x) => (float[N,3,1] y)"
REFUSED = {
    "activation that is read elsewhere": (
        "g (float[N,3,8] x) => (float[N,3,1] y, float[N,3,8] z)"
        "{ a = Tanh(x)  z = Neg(a)  y = GlobalMaxPool(a) }"
    ),
    "activation that is an output": (
        "g (float[N,3,8] x) => (float[N,3,1] y, float[N,3,8] a)"
        "{ a = Tanh(x)  y = GlobalMaxPool(a) }"
    ),
    "inner value that is read elsewhere": (
        "g (float[N,3,8] x) => (float[N,3,1] y, float[N,3,8] z)"
        "{ s = Sigmoid(x)  m = Mul(x, s)  z = Neg(s)  y = GlobalMaxPool(m) }"
    ),
    "constant that varies along the pooled axis": (
        f"{H8} <float[8] c = {{1,2,3,4,5,6,7,8}}> {{ a = Add(x, c)  y = GlobalMaxPool(a) }}"
    ),
    "constant that a caller can override": (
        "g (float[N,3,8] x, float c) => (float[N,3,1] y) <float c = {1}>"
        "{ a = Add(x, c)  y = GlobalMaxPool(a) }"
    ),
    "signs that differ": (
        f"{H8} <float[3,1] c = {{1, -2, 3}}> {{ a = Mul(x, c)  y = GlobalMaxPool(a) }}"
    ),
    "peak": f"{H8} {{ a = Gelu(x)  b = Sub(x, a)  y = GlobalMaxPool(b) }}",
    "two variables": (
        "g (float[N,3,8] x, float[N,3,8] z) => (float[N,3,1] y)"
        "{ a = Add(x, z)  y = GlobalMaxPool(a) }"
    ),
    "four elements": "g (float[N,3,4] x) => (float[N,3,1] y) { a = Tanh(x) y = GlobalMaxPool(a) }",
    "unknown size": "g (float[N,3,L] x) => (float[N,3,1] y) { a = Tanh(x)  y = GlobalMaxPool(a) }",
    "unknown axes": (
        "g (float[3,8] x, int64[1] axes) => (float y) { a = Tanh(x)  y = ReduceMax(a, axes) }"
    ),
    "integers": (
        "g (int32[3,8] x) => (int32[3] y) <int64[1] axes = {1}>"
        "{ a = Neg(x)  y = ReduceMax<keepdims = 0>(a, axes) }"
    ),
    "several windows": (
        "g (float[N,3,8] x) => (float[N,3,2] y){ a = Tanh(x)  y = MaxPool<kernel_shape = [7]>(a) }"
    ),
    "padded window": (
        "g (float[N,3,8] x) => (float[N,3,3] y)"
        "{ a = Neg(x)  y = MaxPool<kernel_shape = [8], pads = [1, 1]>(a) }"
    ),
    "relu that the Conv does for nothing": (
        "g (float[N,1,8] x) => (float[N,1,1] y) <float[1,1,1] w = {2}>"
        "{ a = Conv(x, w)  b = Relu(a)  y = GlobalMaxPool(b) }"
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_left_alone(
    parse: Parse, text_of: Callable[[ir.Model], str], apply_pass: Apply, reason: str
) -> None:
    model = parse(REFUSED[reason])
    InferShapes().run(model)
    before = text_of(model)
    assert not apply_pass(NarrowGlobalMaxPool(), model).modified
    assert text_of(model) == before


def test_what_is_not_known_is_said(parse: Parse, apply_pass: Apply) -> None:
    for reason, words in (("peak", "not known to rise"), ("unknown size", "size")):
        model = parse(REFUSED[reason])
        InferShapes().run(model)
        (remark,) = apply_pass(NarrowGlobalMaxPool(), model).remarks
        assert words in remark.reason


UNARY = ("Abs", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Neg", "Relu", "Sigmoid", "Tanh")
BINARY = ("Add", "Max", "Min", "Mul", "Sub")


@st.composite
def regions(draw: st.DrawFn) -> str:
    """Random acyclic regions of elementwise nodes ahead of a pooling."""
    lines, names = list[str](), ["x"]
    for index in range(draw(st.integers(1, 6))):
        # Mostly the newest value, or little of the region would reach the pooling.
        first = names[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(names))
        if draw(st.booleans()):
            call = f"{draw(st.sampled_from(UNARY))}({first})"
        else:
            second = draw(st.sampled_from([*names, "scalar", "minus", "channel", "mixed"]))
            pair = (second, first) if draw(st.booleans()) else (first, second)
            call = f"{draw(st.sampled_from(BINARY))}({pair[0]}, {pair[1]})"
        names.append(f"v{index}")
        lines.append(f"v{index} = {call}")
    return f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,3,9] x) => (float[N,3,1] y)
        <float scalar = {{1.5}}, float minus = {{-0.75}}, float[3,1] channel = {{0.5, 1.5, 3}},
         float[1,3,1] mixed = {{-1.25, 0.25, 0}}>
        {{ {" ".join(lines)} y = GlobalMaxPool({names[-1]}) }}"""


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=regions(), shift=st.sampled_from([-4.0, 0.0, 4.0]))
def test_random_regions(text: str, shift: float) -> None:
    original = ir.from_proto(onnx.parser.parse_model(text))
    model = ir.from_proto(onnx.parser.parse_model(text))
    InferShapes().run(model)
    NarrowGlobalMaxPool().run(model)
    onnx.checker.check_model(ir.to_proto(model))
    feed = feed_of(4, 3, 9)
    close(original, model, {"x": feed["x"] + np.float32(shift)})
