"""What ONNX Runtime's optimizer misreads is not in a folded model.

Each case shows the wrong numbers (or the failure) of the unfolded graph with optimizations on, so
that a guard no longer needed is noticed, and what the right form costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import ExecutionError
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.simplify.infer_shapes import InferShapes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, version

_GRID = "float s = {0.05}, uint8 z = {120}, float t = {0.1}, uint8 u = {0}"
_STEPS = "{0.002, 0.01, 0.03, 0.06}"
_CHANNELS = "float[4] sc = {0.05, 0.01, 0.02, 0.1}, uint8[4] zc = {120, 3, 90, 0}"
_CONV = "agraph (uint8[1,4,5,5] q) => (uint8[1,4,5,5] y)"
_PRODUCT = "agraph (uint8[8,4] q) => (%s[8,4] y)"


def _numbers(count: int) -> str:
    return ", ".join(map(str, np.random.default_rng(3).integers(-120, 121, count)))


_W4 = f"int8[4,4] w = {{{_numbers(16)}}}, int8[4] zw = {{0, 0, 0, 0}}, float[4] sw = {_STEPS}"
_W1 = _W4.replace("[4,4]", "[4,4,1,1]")
_FLOAT = ", ".join(f"{x * (-1) ** i:.3f}" for i, x in enumerate(np.geomspace(0.003, 5, 16)))


@dataclass(frozen=True)
class Case:
    """A graph that is misread.

    Attributes:
        text: The graph, with the input q and the output y.
        fails: Whether ONNX Runtime refuses it, or fails; else it computes something else.
        opset: Its opset.
        factors: How many Mul the guard may add (none where it only says things otherwise).
        since: The version of ONNX Runtime that misreads it, where the oldest supported does not.
        is_mended: Whether the oldest supported one alone misreads it.
    """

    text: str
    fails: bool = False
    opset: int = 21
    factors: int = 0
    since: str = "1.23"
    is_mended: bool = False


def _gemm(bias: str, weights: str = _W4, scale: str = "float sv = {0.02}, int8 zv = {0}") -> str:
    attribute, names = ("", "sv, zv") if "sv" in scale else (" <axis = 1>", "sw, zw")
    constants = f"{_GRID}, {weights}, {scale or 'float unused = {0}'}, {bias}"
    return (
        f"{_PRODUCT % 'uint8'} <{constants}>"
        f"{{ x = DequantizeLinear (q, s, z) v = DequantizeLinear{attribute} (w, {names})"
        " c = DequantizeLinear (b, sb, zb) g = Gemm (x, v, c) y = QuantizeLinear (g, t, u) }"
    )


def _conv(before: str, weights: str, after: str, constants: str = _W1) -> str:
    return f"{_CONV} <{_GRID}, {constants}>{{ {before} {weights} c = Conv (x, v) {after} }}"


def _real(body: str, constants: str, shape: str = "8,4", result: str = "8,4") -> str:
    return f"agraph (float[{shape}] q) => (float[{result}] y) <{constants}> {{ {body} }}"


_BIAS = "int32[4] b = {700, -900, 400, 1200}"
_READ = "x = DequantizeLinear (q, s, z)"
_PER_TENSOR = "v = DequantizeLinear (w, sv, zv)"
_SV = "float sv = {0.02}, int8 zv = {0}"
_ROUND = "y = QuantizeLinear (c, t, u)"
_PAD = "int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}"
_S8 = "float s = {0.05}, int8 z = {3}"
_PAIR = "p = QuantizeLinear (q, s, z) x = DequantizeLinear (p, s, z)"
_CHAIN = f"{_GRID}, float r = {{0.07}}"
_TWICE = "o = QuantizeLinear (e, r, u) y = DequantizeLinear (o, r, u)"

MISREAD = {
    # 1. A product's int32 bias is taken for one in units of s_x s_w.
    "Gemm with a bias of another scale": Case(
        _gemm(f"{_BIAS}, float sb = {{0.003}}, int32 zb = {{0}}")
    ),
    "Gemm with a bias that has a zero point": Case(
        _gemm(f"{_BIAS}, float sb = {{0.001}}, int32 zb = {{2000}}"), since="1.32"
    ),
    "Gemm with one scale for the bias and one a column for the weights": Case(
        _gemm(f"{_BIAS}, float sb = {{0.003}}, int32 zb = {{0}}", scale="")
    ),
    "MatMul and Add with a bias of another scale": Case(
        f"agraph (uint8[2,3,4] q) => (uint8[2,3,4] y) <{_GRID}, {_W4}, {_SV}, {_BIAS},"
        " float sb = {0.003}>"
        f"{{ {_READ} {_PER_TENSOR} b_ = DequantizeLinear (b, sb) m = MatMul (x, v)"
        " c = Add (m, b_) y = QuantizeLinear (c, t, u) }"
    ),
    "Gemm with a float bias beyond int32": Case(
        f"{_PRODUCT % 'uint8'} <{_GRID}, {_W4}, {_SV}, float[4] b = {{5000000, 1, -3000000, 2}}>"
        f"{{ {_READ} {_PER_TENSOR} c = Gemm (x, v, b) {_ROUND} }}",
        factors=1,
    ),
    # 2. and 3. Scales along another axis of the weights.
    "Conv weights scaled along the input channels": Case(
        _conv(_READ, "v = DequantizeLinear <axis = 1> (w, sw, zw)", _ROUND), factors=1
    ),
    "Conv weights scaled along input channels of another number": Case(
        f"agraph (uint8[1,4,5,5] q) => (uint8[1,2,5,5] y) <{_GRID},"
        f" {_W1.replace('[4,4,1,1]', '[2,4,1,1]').replace(_numbers(16), _numbers(8))}>"
        f"{{ {_READ} v = DequantizeLinear <axis = 1> (w, sw, zw) c = Conv (x, v) {_ROUND} }}",
        fails=True,
        factors=1,
    ),
    "MatMul weights with one scale a row": Case(
        f"{_PRODUCT % 'float'} <{_GRID}, {_W4}>"
        f"{{ {_READ} v = DequantizeLinear <axis = 0> (w, sw, zw) y = MatMul (x, v) }}",
        factors=1,
    ),
    "MatMul weights with one scale a row, of other columns": Case(
        f"agraph (uint8[8,4] q) => (float[8,2] y) <{_GRID},"
        f" {_W4.replace('[4,4]', '[4,2]').replace(_numbers(16), _numbers(8))}>"
        f"{{ {_READ} v = DequantizeLinear <axis = 0> (w, sw, zw) y = MatMul (x, v) }}",
        fails=True,
        factors=1,
    ),
    # 4. One scale a channel on activations.
    "activations with one scale a channel": Case(
        _conv(
            "x = DequantizeLinear <axis = 1> (q, sc, zc)",
            _PER_TENSOR,
            _ROUND,
            f"{_CHANNELS}, {_W1}, {_SV}",
        ),
        fails=True,
        factors=1,
    ),
    "results with one scale a channel": Case(
        _conv(
            _READ,
            _PER_TENSOR,
            "y = QuantizeLinear <axis = 1> (c, sc, zc)",
            f"{_CHANNELS}, {_W1}, {_SV}",
        ),
        fails=True,
        factors=1,
    ),
    "results with one scale a channel behind a Pad": Case(
        f"agraph (uint8[1,4,5,5] q) => (uint8[1,4,7,7] y) <{_GRID}, {_CHANNELS}, {_W1}, {_SV},"
        f" {_PAD}>"
        f"{{ e = DequantizeLinear (q, s, z) x = Pad (e, pads) {_PER_TENSOR} c = Conv (x, v)"
        " y = QuantizeLinear <axis = 1> (c, sc, zc) }",
        fails=True,
        factors=1,
        since="1.32",
    ),
    "a Softmax with one scale a channel behind an Identity": Case(
        f"{_CONV} <{_GRID}, {_CHANNELS}>"
        f"{{ {_READ} m = Softmax (x) i = Identity (m) y = QuantizeLinear <axis = 1> (i, sc, zc) }}",
        factors=1,
    ),
    # QLinearSoftmax computes with floor(1 / scale): 254 for 1/255.
    "a Softmax in steps of 1/255": Case(
        f"agraph (uint8[8,4] q) => (uint8[8,4] y) <{_GRID}, float o = {{0.003921569}}>"
        f"{{ {_READ} m = Softmax (x) y = QuantizeLinear (m, o, u) }}",
        factors=1,
    ),
    # 5. Q-DQ-Q-DQ is merged into one pair.
    "two roundings in a row": Case(_real(f"{_PAIR} e = Identity (x) {_TWICE}", _CHAIN), factors=1),
    "two roundings with an Expand that changes nothing between": Case(
        _real(f"{_PAIR} e = Expand (x, k) {_TWICE}", f"{_CHAIN}, int64[2] k = {{8, 4}}"), factors=1
    ),
    # 7. Float weights are quantized, per tensor.
    "float weights": Case(
        _conv(_READ, "v = Identity (w)", _ROUND, f"float[4,4,1,1] w = {{{_FLOAT}}}"), factors=1
    ),
    "float weights and a bias": Case(
        f"{_CONV} <{_GRID}, float[4,4,1,1] w = {{{_FLOAT}}}, float[4] b = {{0.1, 0.2, 0.3, 0.4}}>"
        f"{{ {_READ} c = Conv (x, w, b) {_ROUND} }}",
        factors=1,
    ),
    "float weights before a Relu": Case(
        f"{_CONV} <{_GRID}, float[4,4,1,1] v = {{{_FLOAT}}}>"
        f"{{ {_READ} c = Conv (x, v) r = Relu (c) y = QuantizeLinear (r, t, u) }}",
        factors=1,
    ),
    "float weights behind a Pad": Case(
        f"agraph (uint8[1,4,5,5] q) => (uint8[1,4,7,7] y) <{_GRID}, {_PAD},"
        f" float[4,4,1,1] v = {{{_FLOAT}}}>"
        f"{{ e = DequantizeLinear (q, s, z) x = Pad (e, pads) c = Conv (x, v) {_ROUND} }}",
        factors=1,
        since="1.32",
    ),
    "float weights of a product": Case(
        f"{_PRODUCT % 'uint8'} <{_GRID}, float[4,4] v = {{{_FLOAT}}},"
        " float[4] b = {0.1, 0.2, 0.3, 0.4}>"
        f"{{ {_READ} c = Gemm (x, v, b) {_ROUND} }}",
        factors=1,
    ),
    # 8. Pairs that ONNX Runtime puts around movements of int8 codes.
    **{
        f"int8 codes behind {op}": Case(
            _real(f"{_PAIR} {op} y = Sigmoid (m)", f"{_S8}, {constants}", "1,2,4,4", result),
            fails=True,
            since="1.32",
        )
        for op, constants, result in (
            ("m = Reshape (x, k)", "int64[2] k = {2, 16}", "2,16"),
            ("m = Transpose <perm = [0, 2, 3, 1]> (x)", "float k = {1}", "1,4,4,2"),
            ("m = MaxPool <kernel_shape = [2, 2]> (x)", "float k = {1}", "1,2,3,3"),
            ("m = Slice (x, k, l)", "int64[1] k = {0}, int64[1] l = {1}", "1,2,4,4"),
            ("m = Squeeze (x, k)", "int64[1] k = {0}", "2,4,4"),
            ("m = Unsqueeze (x, k)", "int64[1] k = {0}", "1,1,2,4,4"),
        )
    },
    "an int8 product of rank 3 and a bias": Case(
        f"agraph (float[2,3,4] q) => (float[2,3,4] y) <{_S8}, {_W4}, {_SV},"
        " float[4] b = {0.1, 0.2, 0.3, 0.4}>"
        f"{{ {_PAIR} {_PER_TENSOR} m = MatMul (x, v) y = Add (m, b) }}",
        fails=True,
        since="1.32",
    ),
    "int32 codes behind a movement": Case(
        "agraph (int32[8,4] q) => (float[4,8] y) <float s = {0.1}, int32 z = {0}>"
        "{ x = DequantizeLinear (q, s, z) m = Transpose <perm = [1, 0]> (x) y = Sigmoid (m) }",
        fails=True,
        factors=1,
    ),
    "int32 codes with one scale a channel behind a movement": Case(
        "agraph (int32[8,4] q) => (float[4,8] y)"
        " <float[4] s = {0.1, 0.2, 0.3, 0.4}, int32[4] z = {0, 0, 0, 0}>"
        "{ x = DequantizeLinear (q, s, z) m = Transpose <perm = [1, 0]> (x) y = Sigmoid (m) }",
        fails=True,
        factors=1,
    ),
    "int32 codes that are multiplied": Case(
        "agraph (int32[8,4] q) => (float[8,4] y) <float s = {0.1}, "
        f"{_W4}> {{ x = DequantizeLinear (q, s) v = DequantizeLinear <axis = 1> (w, sw, zw) "
        "y = MatMul (x, v) }",
        fails=True,
        factors=1,
        is_mended=True,
    ),
    "a product with int32 codes": Case(
        "agraph (int32[8,4] q) => (float[2,4] y) <float s = {0.1}, uint8[2,8] w = "
        f"{{{', '.join(map(str, range(100, 116)))}}}, float sw = {{0.02}}, uint8 zw = {{110}}> "
        "{ x = DequantizeLinear (q, s) v = DequantizeLinear (w, sw, zw) y = MatMul (v, x) }",
        fails=True,
        factors=1,
        is_mended=True,
    ),
    "a vector of weights with one scale an element": Case(
        f"agraph (uint8[4,4] q) => (float[4] y) <{_GRID}, int8[4] w = {{50, -60, 70, 80}},"
        f" float[4] sw = {_STEPS}>"
        f"{{ {_READ} v = DequantizeLinear <axis = 0> (w, sw) y = MatMul (x, v) }}",
        factors=1,
    ),
    "data of a scale of one, and float weights": Case(
        f"agraph (uint8[1,4,5,5] q) => (uint8[1,4,5,5] y) <float s = {{1.0}}, uint8 z = {{120}},"
        f" float t = {{3.1}}, uint8 u = {{100}}, float[4,4,1,1] v = {{{_FLOAT}}}>"
        f"{{ {_READ} c = Conv (x, v) {_ROUND} }}",
        factors=1,
        since="1.32",
    ),
    "a float bias before there is Round": Case(
        f"{_PRODUCT % 'uint8'} <{_GRID}, int8[4,4] w = {{{_numbers(16)}}}, {_SV},"
        " float[4] b = {0.1, 0.2, -0.3, 4.0}>"
        f"{{ {_READ} {_PER_TENSOR} c = Gemm (x, v, b) {_ROUND} }}",
        fails=True,
        opset=10,
        factors=1,
        since="1.32",
    ),
    "int32 data that is reshaped for a Gemm": Case(
        f"agraph (int32[2,3,4] q) => (float[2,3,4] y) <float s = {{0.05}},"
        f" float[4,4] v = {{{_FLOAT}}}, float[4] b = {{0.1, 0.2, -0.3, 4.0}}>"
        "{ x = DequantizeLinear (q, s) m = MatMul (x, v) y = Add (m, b) }",
        fails=True,
        factors=1,
        since="1.32",
    ),
    "weights outside of the body that multiplies them": Case(
        f"agraph (float[8,4] q) => (float[8,4] y) <float most = {{1e9}}, {_W4}>"
        "{ r = ReduceSum <keepdims = 0> (q) k = Less (r, most)"
        " y = If (k) <then_branch = a () => (float[8,4] m)"
        " { v = DequantizeLinear <axis = 1> (w, sw) m = MatMul (q, v) },"
        " else_branch = b () => (float[8,4] u) { u = Relu (q) }> }",
        fails=True,
        since="1.32",
    ),
    **{
        f"{weights} without a zero point a channel": Case(
            f"{_PRODUCT % 'float'} <{_GRID}, int8[4,4] w = {{-128, {_numbers(15)}}},"
            f" float[4] sw = {_STEPS}>"
            f"{{ {_READ} v = DequantizeLinear <axis = {axis}> (w, sw) {ops} }}",
            fails=True,
            is_mended=True,
        )
        for weights, axis, ops in (
            ("weights", 1, "y = Gemm <alpha = -1.0> (x, v)"),
            ("turned weights", 0, "y = Gemm <alpha = -1.0, transB = 1> (x, v)"),
            (
                "weights that are moved",
                1,
                "m = Transpose <perm = [1, 0]> (v) r = Sigmoid (x) y = MatMul (r, m)",
            ),
        )
    },
    **{
        f"int8 codes of {op}, their type {said}": Case(
            _real(
                f"{_PAIR} m = {op} o = QuantizeLinear <output_dtype = 3> ({how})"
                " y = DequantizeLinear (o, r)",
                f"{_S8}, float r = {{0.07}}, int8 e = {{0}}, bool[4] k = {{1, 0, 0, 1}}",
            ),
            fails=True,
            factors=2 if "Where" in op else 0,  # the lowering's
            since="1.32" if "twice" in said else "1.23",
        )
        for said, how in (("told by an attribute", "m, r"), ("told twice", "m, r, e"))
        for op in ("Add (x, x)", "Mul (x, x)", "Where (k, x, x)")
    },
    "int8 codes without a zero point behind a movement": Case(
        _real(
            "p = QuantizeLinear (q, s, z) x = DequantizeLinear (p, s)"
            " m = Transpose <perm = [1, 0]> (x) y = Sigmoid (m)",
            "float s = {0.05}, int8 z = {0}",
            "8,4",
            "4,8",
        ),
        opset=17,
    ),
}


def _feed(model: ir.Model) -> dict[str, Any]:
    value = model.graph.inputs[0]
    assert value.shape is not None
    shape = value.shape.numpy()
    numbers = np.random.default_rng(0)
    if value.dtype == ir.DataType.FLOAT:
        return {"q": (3 * numbers.standard_normal(shape)).astype(np.float32)}
    if value.dtype == ir.DataType.INT32:
        return {"q": numbers.integers(-100, 100, shape).astype(np.int32)}
    return {"q": numbers.integers(0, 256, shape).astype(np.uint8)}


@pytest.mark.parametrize("case", MISREAD)
@pytest.mark.parametrize("target", ["ort", "standard", "qdq", "integer"])
def test_folded_model_means_the_same_with_optimizations_on(
    case: str,
    target: Literal["ort", "standard", "qdq", "integer"],
    parse: Callable[..., ir.Model],
) -> None:
    if "zero point" in case and "Gemm" in case and version().startswith("1.23."):
        pytest.skip(f"onnxruntime {version()} takes no notice of the zero point of int32 codes")
    model = parse(MISREAD[case].text, opset=MISREAD[case].opset)
    feed = _feed(model)
    wanted = Session(model, REFERENCE).run(feed)["y"].astype(np.float64)
    FoldQdq(target).run(model)
    for config in (REFERENCE, DEPLOYMENT):
        got = Session(model, config).run(feed)["y"].astype(np.float64)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", MISREAD)
def test_unfolded_graph_is_still_misread(case: str, parse: Callable[..., ir.Model]) -> None:
    known = MISREAD[case]
    if known.since != "1.23" and version().startswith("1.23."):
        pytest.skip(f"onnxruntime {version()} reads this right")
    if known.is_mended and not version().startswith("1.23."):
        pytest.skip(f"onnxruntime {version()} reads this right")
    model = parse(known.text, opset=known.opset)
    feed = _feed(model)
    wanted = Session(model, REFERENCE).run(feed)["y"].astype(np.float64)
    if known.fails:
        with pytest.raises(ExecutionError):
            Session(model, DEPLOYMENT).run(feed)
        return
    got = Session(model, DEPLOYMENT).run(feed)["y"].astype(np.float64)
    assert np.max(np.abs(got - wanted)) > 0.02, "no longer misread: drop the guard"


@pytest.mark.parametrize("case", MISREAD)
@pytest.mark.parametrize("target", ["ort", "qdq"])
def test_a_guard_costs_at_most_a_multiplication(
    case: str, target: Literal["ort", "qdq"], parse: Callable[..., ir.Model]
) -> None:
    model = parse(MISREAD[case].text, opset=MISREAD[case].opset)
    before = Counter(node.op_type for node in model.graph)
    FoldQdq(target).run(model)
    added = Counter(node.op_type for node in model.graph) - before
    integer = {"QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "Gemm", "Reshape", "Clip"}
    integer |= {"QLinearAdd", "QLinearMul"}
    through_float = {"Cast"} if "MaxPool" in case and target == "ort" else set[str]()
    if "int32" in case:
        through_float.add("Cast")  # in place of the DequantizeLinear
    if any(each in case for each in ("two roundings", "Softmax", "Where")):
        through_float |= {"Cast", "Sub"}  # the lowering's, without a guard
    pairs = {"QuantizeLinear", "DequantizeLinear"}  # of one type, which any runtime merges
    assert set(added) <= {*pairs, *integer, *through_float, "Mul"}
    assert added["Mul"] <= MISREAD[case].factors


@pytest.mark.parametrize(
    ("columns", "steps", "axis", "opset", "is_guarded"),
    [
        ("2", 300, -1, 17, True),
        ("1", 200, -1, 17, True),
        ("N", 256, -1, 17, True),
        ("1,4", 256, 1, 17, True),
        ("1,4", 256, 1, 12, False),
        ("2", 256, -1, 17, False),
    ],
)
def test_a_softmax_that_1_23_makes_zeros_of(
    columns: str,
    steps: int,
    axis: int,
    opset: int,
    is_guarded: bool,
    parse: Callable[..., ir.Model],
) -> None:
    """What is more than 255 steps, and what is the only number: later versions saturate."""
    model = parse(
        f"agraph (uint8[8,{columns}] q) => (uint8[8,{columns}] y)"
        f"<{_GRID}, float o = {{{1 / steps:.10f}}}>"
        f"{{ {_READ} m = Softmax <axis = {axis}> (x) y = QuantizeLinear (m, o, u) }}",
        opset=opset,
    )
    sizes = [8, *(int(each) if each.isdigit() else 1 for each in columns.split(","))]
    feed = {"q": np.full(sizes, 7, np.uint8)}
    wanted = Session(model, REFERENCE).run(feed)["y"]
    InferShapes().run(model)
    FoldQdq("qdq").run(model)
    (softmax,) = [node for node in model.graph if node.op_type == "Softmax"]
    assert softmax.inputs[0] is not None
    source = softmax.inputs[0].producer()
    assert source is not None
    assert source.op_type == ("Mul" if is_guarded else "DequantizeLinear")
    np.testing.assert_array_equal(Session(model, DEPLOYMENT).run(feed)["y"], wanted)


def test_weights_packed_for_the_data_of_integers_stay(parse: Callable[..., ir.Model]) -> None:
    """Where the data is quantized too, the product is one of integers."""
    model = parse(
        f"{_PRODUCT % 'float'} <{_GRID}, {_W4}, {_SV}>{{ {_READ} {_PER_TENSOR} y = MatMul (x, v) }}"
    )
    FoldQdq().run(model)
    assert "MatMulNBits" not in {node.op_type for node in model.graph}


def test_transposed_convolution_keeps_its_canonical_form(parse: Callable[..., ir.Model]) -> None:
    """ONNX Runtime has no integer kernel for it, so nothing is misread; other runtimes have."""
    model = parse(
        f"{_CONV} <{_GRID}, {_W1}, {_SV}>"
        f"{{ {_READ} {_PER_TENSOR} c = ConvTranspose (x, v) {_ROUND} }}"
    )
    FoldQdq("qdq").run(model)
    assert not {"Cast", "Mul"} & {node.op_type for node in model.graph}


def test_what_is_read_right_is_not_guarded(parse: Callable[..., ir.Model]) -> None:
    """A product with a factor, before a rounding: no integer kernel is taken for it."""
    model = parse(
        f"{_PRODUCT % 'uint8'} <{_GRID}, {_W4}, {_SV}, float[4] b = {{1, 2, 3, 4}}>"
        f"{{ {_READ} {_PER_TENSOR} g = Gemm <alpha = 0.5> (x, v, b) a = Abs (g)"
        " y = QuantizeLinear (a, t, u) }"
    )
    FoldQdq("qdq").run(model)
    assert "Mul" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("target", ["ort", "standard", "qdq", "integer"])
def test_a_transpose_of_dequantized_channels_says_its_permutation(
    target: str, parse: Callable[..., ir.Model]
) -> None:
    """Optimizing one that does not, ONNX Runtime 1.23 aborts: only the folded one can be tried."""
    model = parse(
        f"agraph (float[8,4] q) => (float[8,4] y) <{_W4}>"
        "{ v = DequantizeLinear <axis = 0> (w, sw, zw) i = Identity (v) m = Transpose (i)"
        " y = MatMul (q, m) }"
    )
    feed = _feed(model)
    wanted = Session(model, REFERENCE).run(feed)["y"]
    Pipeline(parse_passes(f"infer-shapes,fold-qdq{{target={target}}}")).run(model)
    for node in model.graph:
        assert node.op_type != "Transpose" or node.attributes.get_ints("perm") == (1, 0)
    got = Session(model, DEPLOYMENT).run(feed)["y"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_transpose_of_dequantized_channels_of_unknown_rank_is_reported(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse(
        "agraph (uint8[8,4] q) => (float[4,8] y) <float[4] s = {0.1, 0.2, 0.3, 0.4}>"
        "{ v = DequantizeLinear <axis = 1> (q, s) y = Transpose (v) }"
    )
    model.graph.outputs[0].shape = None
    result = FoldQdq("ort").run(model)
    assert any("aborts the process" in each.reason for each in result.remarks)
