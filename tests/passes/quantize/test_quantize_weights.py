"""quantize-weights: what it writes, in both forms, and its numbers against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.quantize.quantize_weights import QuantizeWeights
from onnxfold.passes.quantize.row_scales import type_of_blocks, type_of_channels
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]

GEMM = "y = Gemm<alpha = 2.0, beta = 0.5, transB = 1>(x, w, b)"
TYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


def _normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _model(text: str, opset: int = 21, **constants: Array) -> ir.Model:
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    proto = onnx.parser.parse_model(header + text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    # Initializers that are not declared in the text are not inputs of the graph.
    return ir.from_proto(proto)


def _product(body: str, opset: int = 21, **constants: Array) -> ir.Model:
    return _model(f"g (float[m,k] x) => (float[m,n] y) {{ {body} }}", opset, **constants)


def _op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _stored_size(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def _expected_weights(weights: Array, bits: int, block: int, symmetric: bool) -> Array:
    dtype = TYPES[bits, symmetric]
    if block:
        kind = type_of_blocks(weights, 0, block, dtype, "mse")
    else:
        kind = type_of_channels(weights, 1, dtype, "mse")
    return kind.dequantize(kind.quantize(weights))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [0, 16, 32, 128])
@pytest.mark.parametrize("depth", [96, 72, 61])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_compute_with_the_stored_weights(
    apply_pass: Apply, bits: int, depth: int, block: int, symmetric: bool
) -> None:
    weights = _normal(depth, 40)
    x = _normal(5, depth, seed=1)
    expected = x @ _expected_weights(weights, bits, block, symmetric)
    for form in ("dq", "nbits"):
        model = _product("y = MatMul(x, w)", w=weights)
        options: dict[str, Any] = {"bits": bits, "block": block, "symmetric": symmetric}
        result = apply_pass(QuantizeWeights(form=form, accuracy_level=1, **options), model)
        assert result.remarks == ()
        proto = ir.to_proto(model)
        for config in (REFERENCE, DEPLOYMENT):
            found = Session(proto, config).run({"x": x})["y"]
            np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=f"{form} {config.name}")


def test_the_standard_form(apply_pass: Apply) -> None:
    model = _product("y = MatMul(x, w)", w=_normal(96, 40))
    result = apply_pass("quantize-weights", model)
    assert result.rules == {"store-weights": 1, "raise-ir-version": 1}
    dequantize, product = model.graph
    assert (dequantize.op_type, product.op_type) == ("DequantizeLinear", "MatMul")
    assert dequantize.attributes.get_int("axis") == 0
    assert dequantize.attributes.get_int("block_size") == 32
    assert [value and (value.dtype, value.shape) for value in dequantize.inputs] == [
        (ir.DataType.INT4, ir.Shape((96, 40))),
        (ir.DataType.FLOAT, ir.Shape((3, 40))),
    ]
    assert "w" not in model.graph.initializers


def test_the_form_of_onnxruntime(apply_pass: Apply) -> None:
    model = _product("y = MatMul(x, w)", opset=13, w=_normal(61, 40))
    result = apply_pass("quantize-weights{form=nbits symmetric=false}", model)
    assert result.rules == {"pack-weights": 1, "raise-ir-version": 1}
    (product,) = model.graph
    assert (product.domain, product.op_type) == ("com.microsoft", "MatMulNBits")
    assert {key: product.attributes[key].as_int() for key in product.attributes} == {
        "K": 61,
        "N": 40,
        "bits": 4,
        "block_size": 32,
        "accuracy_level": 4,
    }
    assert [value and value.shape for value in product.inputs] == [
        ir.Shape(("m", "k")),
        *(ir.Shape(shape) for shape in ((40, 2, 16), (80,), (40,))),
    ]


@pytest.mark.parametrize("form", ["dq", "nbits"])
@pytest.mark.parametrize("bias", [_normal(40, seed=3), None])
def test_gemm_becomes_a_product_and_a_sum(apply_pass: Apply, form: Any, bias: Array | None) -> None:
    weights, x = _normal(40, 64), _normal(5, 64, seed=1)
    body = GEMM if bias is not None else GEMM.replace("w, b", "w")
    constants = {"w": weights} if bias is None else {"w": weights, "b": bias}
    model = _product(body, 21, **constants)
    apply_pass(QuantizeWeights(form=form, accuracy_level=1), model)
    assert "Gemm" not in _op_types(model)
    doubled = 2 * np.moveaxis(weights, 1, 0)
    expected = x @ _expected_weights(doubled, 4, 32, True)
    if bias is not None:
        expected += 0.5 * bias
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run({"x": x})["y"]
        np.testing.assert_allclose(found, expected, atol=2e-4)


LOOKUP = "g (int64[m] i) => (float[m,n] y) { y = Gather(t, i) }"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [0, 16, 32])
@pytest.mark.parametrize("width", [48, 40])
@pytest.mark.parametrize(
    ("bits", "form", "ops"),
    [
        (8, "dq", {"Gather", "DequantizeLinear"}),
        (8, "nbits", {"Gather", "DequantizeLinear"}),
        (4, "dq", {"Gather", "DequantizeLinear", "BitShift", "BitwiseAnd", "Concat"}),
        (4, "nbits", {"GatherBlockQuantized"}),
    ],
)
def test_lookups(
    apply_pass: Apply, bits: int, form: Any, ops: set[str], width: int, block: int, symmetric: bool
) -> None:
    table = _normal(50, width)
    model = _model(LOOKUP, t=table)
    apply_pass(QuantizeWeights(bits, block, symmetric, form), model)
    signed = {"Cast", "Sub"} if symmetric and "Concat" in ops else set[str]()
    assert set(_op_types(model)) == ops | signed
    dtype = TYPES[bits, symmetric]
    kind = type_of_blocks(table, 1, block or width, dtype, "mse")
    rows = np.array([3, 49, 0, 3])
    expected = kind.dequantize(kind.quantize(table))[rows]
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run({"i": rows})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_rows_are_gathered_before_they_are_dequantized(apply_pass: Apply) -> None:
    model = _model(LOOKUP, t=_normal(50, 48))
    apply_pass("quantize-weights{bits=8}", model)
    assert _op_types(model) == ["Gather", "Gather", "DequantizeLinear"]
    model = _model(LOOKUP, t=_normal(500, 64))
    before = _stored_size(model)
    apply_pass("quantize-weights", model)
    assert _op_types(model)[:2] == ["Gather", "Gather"]
    assert before / _stored_size(model) > 6.3


def test_rows_of_odd_length_have_8_bits_where_two_columns_would_share_a_byte(
    apply_pass: Apply,
) -> None:
    model = _model(LOOKUP, t=_normal(50, 47))
    apply_pass("quantize-weights", model)
    assert _op_types(model) == ["Gather", "Gather", "DequantizeLinear"]
    model = _model(LOOKUP, t=_normal(50, 47))
    apply_pass("quantize-weights{form=nbits}", model)
    assert _op_types(model) == ["GatherBlockQuantized"]


@pytest.mark.parametrize(("bits", "block", "least"), [(4, 32, 6.3), (4, 128, 7.4), (8, 32, 3.5)])
def test_size(apply_pass: Apply, bits: int, block: int, least: float) -> None:
    for form in ("dq", "nbits"):
        model = _product("y = MatMul(x, w)", w=_normal(512, 256))
        before = _stored_size(model)
        apply_pass(QuantizeWeights(bits=bits, block=block, form=form), model)
        assert before / _stored_size(model) > least


def test_operators_that_share_weights_share_what_is_computed(apply_pass: Apply) -> None:
    model = _model(
        "g (float[m,64] x) => (float[m,64] y) { a = MatMul(x, w) y = MatMul(a, w) }",
        w=_normal(64, 64),
    )
    apply_pass("quantize-weights{form=nbits}", model)
    apply_pass("deduplicate-initializers", model)
    first, second = model.graph
    assert first.inputs[1] is second.inputs[1]
    assert "w" not in model.graph.initializers


def test_weights_that_something_else_reads_stay_beside_their_codes(apply_pass: Apply) -> None:
    model = _model(
        "g (float[m,64] x) => (float[m,64] y) { a = MatMul(x, w) b = Abs(w) y = MatMul(a, b) }",
        w=_normal(64, 64),
    )
    apply_pass("quantize-weights", model)
    assert constant_array(model.graph.initializers["w"]) is not None


def test_weights_in_bodies_and_functions(parse: Parse, apply_pass: Apply) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[1,64] x, bool c) => (float[1,64] y)
    {
      y = If (c) <then_branch = yes () => (float[1,64] p) {
                    w = ConstantOfShape(s) p = MatMul(x, k) },
                  else_branch = no () => (float[1,64] q) { q = MatMul(x, k) }>
    }"""
    proto = onnx.parser.parse_model(
        text.replace("w = ConstantOfShape(s) ", "").replace(', "local" : 1', "")
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(_normal(64, 64), "k"))
    model = ir.from_proto(proto)
    result = apply_pass("quantize-weights{form=nbits}", model)
    assert result.rules["pack-weights"] == 2
    x, weights = _normal(1, 64, seed=1), _expected_weights(_normal(64, 64), 4, 32, True)
    for branch in (True, False):
        found = Session(ir.to_proto(model)).run({"x": x, "c": np.array(branch)})["y"]
        # Accuracy level 4 rounds the data to int8.
        np.testing.assert_allclose(found, x @ weights, atol=0.5)


@pytest.mark.parametrize(
    ("text", "constants", "reason"),
    [
        (
            "g (float[64,m] x) => (float[m,64] y) { y = Gemm<transA = 1>(x, w) }",
            {"w": (64, 64)},
            r"its data is transposed \(transA\)",
        ),
        (
            "g (float[2,m,64] x) => (float[2,m,64] y) { y = MatMul(x, w) }",
            {"w": (2, 64, 64)},
            "its weights have 3 axes, not 2",
        ),
        (
            "g (int64[m] i) => (float[64,m] y) { y = Gather<axis = 1>(w, i) }",
            {"w": (64, 64)},
            "columns are looked up, not rows",
        ),
        (
            "g (float[m,64] x, float[64] b) => (float[m,64] y) { y = Gemm<beta = 2.0>(x, w, b) }",
            {"w": (64, 64)},
            r"its bias has a factor \(beta\) and is computed at run time",
        ),
    ],
)
def test_what_stays_in_float_has_a_reason(
    apply_pass: Apply, text: str, constants: dict[str, tuple[int, ...]], reason: str
) -> None:
    model = _model(text, 21, **{name: _normal(*shape) for name, shape in constants.items()})
    result = apply_pass("quantize-weights", model)
    assert not result.modified
    assert [each.reason for each in result.remarks] == [
        f"its weights stay in float: {reason}".replace("\\", "")
    ]


def test_operators_in_functions(apply_pass: Apply) -> None:
    body = """
    <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[m,32] x) => (float[m,32] y) { y = local.f<a = 2.0>(x) }
    <domain: "local", opset_import: ["" : 21]>
    f <a> (x) => (y) {
      r = Constant<value = float[32,32] {%s}>()
      p = MatMul(x, r)
      y = Gemm<alpha: float = @a>(p, r)
    }"""
    numbers = ", ".join(str(each) for each in range(1024))
    model = ir.from_proto(onnx.parser.parse_model(body % numbers))
    result = apply_pass("quantize-weights{form=nbits}", model)
    assert result.rules["pack-weights"] == 1
    assert [each.reason for each in result.remarks] == [
        "its weights stay in float: its attributes are parameters of a local function"
    ]
    x = np.ones((1, 32), np.float32)
    assert np.all(np.isfinite(Session(ir.to_proto(model)).run({"x": x})["y"]))


def test_small_weights_and_other_operators_are_left_alone_in_silence(apply_pass: Apply) -> None:
    model = _model(
        "g (float[m,8] x) => (float[m,8] y) { a = MatMul(x, w) y = Add(a, b) }",
        w=_normal(8, 8),
        b=_normal(8),
    )
    result = apply_pass("quantize-weights", model)
    assert not result.modified
    assert result.remarks == ()


def test_skip_and_op_types(apply_pass: Apply) -> None:
    model = _product("a = MatMul(x, w) y = Gemm(a, w)", w=_normal(64, 64))
    assert not apply_pass("quantize-weights{op-types=MatMul skip=a}", model).modified
    apply_pass("quantize-weights{op-types=Gemm}", model)
    assert _op_types(model) == ["MatMul", "DequantizeLinear", "MatMul"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits=3; it can be 4 or 8"),
        ({"block": 48}, "block=48; it can be 0 or a power of two from 16 on"),
        ({"accuracy_level": 5}, "accuracy-level=5 is not 0..4"),
        ({"op_types": ("Matmul",)}, "'Matmul' has no such weights; did you mean 'MatMul'"),
        ({"skip": ("z",)}, "the model has no node 'z'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantizeWeights(**options).run(_product("y = MatMul(x, w)", w=_normal(64, 64)))


def test_opsets(apply_pass: Apply) -> None:
    weights = _normal(64, 64)
    with pytest.raises(PassError, match=r"MatMul 'y' need opset 21, .*upgrade-opset\{to=21\}"):
        QuantizeWeights().run(_product("y = MatMul(x, w)", opset=17, w=weights))
    apply_pass(
        "quantize-weights{bits=8 block=0}", _product("y = MatMul(x, w)", opset=13, w=weights)
    )
    for opset in (10, 13, 23):
        model = _product("y = MatMul(x, w)", opset=opset, w=weights)
        apply_pass("quantize-weights{form=nbits}", model)
        found = Session(ir.to_proto(model)).run({"x": _normal(1, 64)})["y"]
        assert np.all(np.isfinite(found))


def test_the_least_squared_error_is_less(apply_pass: Apply) -> None:
    weights = _normal(128, 64)
    for dtype in TYPES.values():
        errors = [
            float(np.square(kind.dequantize(kind.quantize(weights)) - weights).sum())
            for kind in (type_of_blocks(weights, 0, 32, dtype, each) for each in ("max", "mse"))
        ]
        assert errors[1] < errors[0]
        if dtype == ir.DataType.INT4:
            assert errors[1] < errors[0] * 0.9
