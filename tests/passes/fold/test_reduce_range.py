"""Weights with head room: what is reduced, by how much, and that no product saturates then."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.fold.reduce_range import ReduceRange
from onnxfold.passes.pair_saturation import saturating_layers, saturating_sums, summing_order
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]

_IN = "float s = {0.5}, uint8 z = {100}, float t = {30}, uint8 u = {128}"
_WEIGHTS = "int8[2,2] w = {127, 3, 101, -90}"
_ONE = "float sw = {0.25}, int8 zw = {0}"
_EACH = "float[2] sw = {0.25, 0.5}, int8[2] zw = {0, 0}"


def _product(constants: str, body: str, parse: Parse) -> ir.Model:
    return parse(
        f"agraph (uint8[3,2] q) => (uint8[3,2] y) <{_IN}, {constants}>"
        f"{{ x = DequantizeLinear (q, s, z) {body} y = QuantizeLinear (m, t, u) }}"
    )


def test_only_the_channels_that_can_saturate_are_reduced(
    parse: Parse, assert_text: Callable[[ir.Model, str], None]
) -> None:
    body = "v = DequantizeLinear <axis = 1> (w, sw, zw) m = MatMul (x, v)"
    model = _product(f"{_WEIGHTS}, {_EACH}", body, parse)
    result = ReduceRange().run(model)
    # By 127 / 64, the least that does.
    assert_text(
        model,
        f"agraph (uint8[3,2] q) => (uint8[3,2] y) <{_IN},"
        " int8[2,2] v_reduced_codes = {64, 3, 51, -90},"
        " float[2] v_reduced_scale = {0.49609375, 0.5}, int8[2] v_reduced_zero_point = {0, 0}>"
        "{ x = DequantizeLinear (q, s, z) v_reduced = DequantizeLinear <axis = 1>"
        " (v_reduced_codes, v_reduced_scale, v_reduced_zero_point) m = MatMul (x, v_reduced)"
        " y = QuantizeLinear (m, t, u) }",
    )
    assert result.rules["reduce-range"] == 1
    (remark,) = result.remarks
    assert remark.reason == (
        "1 of 2 channels can saturate without VNNI (two products reach 58140): 1 have smaller "
        "codes now, at 61.5 dB"
    )


def test_one_scale_for_all_grows_for_all(parse: Parse) -> None:
    body = "v = DequantizeLinear (w, sw, zw) m = MatMul (x, v)"
    codes, scale = _reduced(_product(f"{_WEIGHTS}, {_ONE}", body, parse))
    np.testing.assert_array_equal(codes, [[64, 2], [51, -45]])
    assert abs(scale - 0.25 * 127 / 64) < 0.001


def test_even_codes_are_halved_exactly(parse: Parse) -> None:
    body = "v = DequantizeLinear (w, sw, zw) m = MatMul (x, v)"
    model = _product(f"int8[2,2] w = {{126, 4, 100, -90}}, {_ONE}", body, parse)
    before, feed = model.clone(), {"q": np.array([[0, 255], [7, 99], [200, 3]], np.uint8)}
    (remark,) = ReduceRange().run(model).remarks
    assert remark.reason.endswith("at inf dB")
    for each in (REFERENCE, DEPLOYMENT):
        got = Session(model, each).run(feed)["y"]
        np.testing.assert_array_equal(got, Session(before, REFERENCE).run(feed)["y"])


@pytest.mark.parametrize(
    ("constants", "body"),
    [
        (f"int8[2,2] w = {{100, 3, -100, -90}}, {_ONE}", "m = MatMul (x, v)"),
        (f"int8[2,2] w = {{127, 127, 1, 1}}, {_ONE}", "m = MatMul (x, v)"),
        (f"int8[2,2] w = {{64, -64, 64, -64}}, {_ONE}", "m = MatMul (x, v)"),
        (f"float[2,2] v = {{9, 9, 9, 9}}, {_WEIGHTS}, {_ONE}", "m = MatMul (x, v)"),
    ],
    ids=["opposite signs", "one large weight a pair", "7 bits already", "float weights"],
)
def test_layers_that_cannot_saturate_are_left_alone(
    constants: str, body: str, parse: Parse
) -> None:
    weights = "" if "float[2,2] v" in constants else "v = DequantizeLinear (w, sw, zw) "
    result = ReduceRange().run(_product(constants, weights + body, parse))
    assert not result.modified
    assert not result.remarks


@pytest.mark.parametrize("op_type", ["Sigmoid", "Clip"])
def test_data_that_is_limited_cannot_drive_a_pair_over(op_type: str, parse: Parse) -> None:
    """A Sigmoid quantized in steps of 1/128 has codes up to 128."""
    arguments = {"Sigmoid": "(a)", "Clip": "(a, low, high)"}[op_type]
    model = parse(
        f"agraph (float[3,2] a) => (uint8[3,2] y) <{_IN}, {_WEIGHTS}, {_ONE}, float low = {{0}},"
        " float high = {1}, float sx = {0.0078125}, uint8 zx = {0}>"
        f"{{ r = {op_type} {arguments} p = QuantizeLinear (r, sx, zx)"
        " x = DequantizeLinear (p, sx, zx) v = DequantizeLinear (w, sw, zw) m = MatMul (x, v)"
        " y = QuantizeLinear (m, t, u) }"
    )
    assert not ReduceRange().run(model).modified


def test_depthwise_convolutions_are_left_alone(parse: Parse) -> None:
    model = parse(
        f"agraph (uint8[1,2,4,4] q) => (uint8[1,2,3,3] y) <{_IN}, {_ONE},"
        " int8[2,1,2,2] w = {127, 127, 127, 127, 127, 127, 127, 127}>"
        "{ x = DequantizeLinear (q, s, z) v = DequantizeLinear (w, sw, zw)"
        " m = Conv <group = 2> (x, v) y = QuantizeLinear (m, t, u) }"
    )
    assert not ReduceRange().run(model).modified


def test_weights_behind_a_transpose_are_reached(parse: Parse) -> None:
    body = (
        "d = DequantizeLinear <axis = 0> (w, sw, zw) v = Transpose <perm = [1, 0]> (d)"
        " m = MatMul (x, v)"
    )
    model = _product(f"int8[2,2] w = {{127, 101, 3, -90}}, {_EACH}", body, parse)
    codes, scale = _reduced(model)
    np.testing.assert_array_equal(codes, [[64, 3], [51, -90]])
    np.testing.assert_array_equal(scale, [0.49609375, 0.5])
    assert "Transpose" not in {node.op_type for node in model.graph}


def test_weights_of_gemm_are_reduced_as_they_are_stored(parse: Parse) -> None:
    body = (
        "v = DequantizeLinear <axis = 0> (w, sw, zw) b = DequantizeLinear (c, sb)"
        " m = Gemm <transB = 1> (x, v, b)"
    )
    constants = f"int8[2,2] w = {{127, 101, 3, -90}}, {_EACH}, int32[2] c = {{9, -7}}"
    model = _product(f"{constants}, float sb = {{0.125}}", body, parse)
    before = model.clone()
    codes, _ = _reduced(model)
    np.testing.assert_array_equal(codes, [[64, 51], [3, -90]])
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    assert gemm.inputs[2] is not None
    assert gemm.inputs[2].const_value is not None
    np.testing.assert_array_equal(gemm.inputs[2].const_value.numpy(), [9 / 8, -7 / 8])
    feed = {"q": np.array([[0, 255], [7, 99], [200, 3]], np.uint8)}
    wanted = Session(before, REFERENCE).run(feed)["y"].astype(int)
    for target in ("ort", "standard", "qdq"):
        folded = model.clone()
        FoldQdq(target).run(folded)
        for each in (REFERENCE, DEPLOYMENT):
            assert np.max(np.abs(Session(folded, each).run(feed)["y"] - wanted)) <= 1


def test_asymmetric_uint8_weights_become_symmetric(parse: Parse) -> None:
    """The fold makes them int8; codes less their zero point need two bits less here."""
    constants = "uint8[2,2] w = {255, 3, 250, 0}, float sw = {0.25}, uint8 zw = {5}"
    body = "v = DequantizeLinear (w, sw, zw) m = MatMul (x, v)"
    codes, scale = _reduced(_product(constants, body, parse))
    np.testing.assert_array_equal(codes, [[63, -1], [62, -1]])
    assert abs(scale - 250 / 63 * 0.25) < 0.01


def test_weights_shared_by_two_ops_stay_for_the_one_that_cannot_saturate(parse: Parse) -> None:
    model = parse(
        f"agraph (uint8[3,2] q, float[3,2] a) => (uint8[3,2] y, uint8[3,2] k)"
        f" <{_IN}, {_WEIGHTS}, {_ONE}, float sx = {{0.0078125}}, uint8 zx = {{0}}>"
        "{ x = DequantizeLinear (q, s, z) v = DequantizeLinear (w, sw, zw) m = MatMul (x, v)"
        " y = QuantizeLinear (m, t, u) r = Sigmoid (a) p = QuantizeLinear (r, sx, zx)"
        " e = DequantizeLinear (p, sx, zx) l = MatMul (e, v) k = QuantizeLinear (l, t, u) }"
    )
    ReduceRange().run(model)
    weights = [node.inputs[1] for node in model.graph if node.op_type == "MatMul"]
    assert [value.name for value in weights if value is not None] == ["v_reduced", "v"]


def test_always_reduces_what_could_not_saturate(parse: Parse) -> None:
    body = "v = DequantizeLinear <axis = 1> (w, sw, zw) m = MatMul (x, v)"
    model = _product(f"int8[2,2] w = {{100, 3, -100, -40}}, {_EACH}", body, parse)
    codes, scale = _reduced(model, ReduceRange(when="always"))
    np.testing.assert_array_equal(codes, [[64, 3], [-64, -40]])
    np.testing.assert_array_equal(scale, [0.25 * 100 / 64, 0.5])


def test_a_smaller_magnitude_takes_more_bits(parse: Parse) -> None:
    body = "v = DequantizeLinear (w, sw, zw) m = MatMul (x, v)"
    codes, scale = _reduced(_product(f"{_WEIGHTS}, {_ONE}", body, parse), ReduceRange(31))
    np.testing.assert_array_equal(codes, [[31, 1], [25, -22]])
    assert scale == np.float32(0.25 * 127 / 31)


def test_a_larger_magnitude_keeps_pairs_of_the_kernels_from_saturating(parse: Parse) -> None:
    """127 + 101 is reduced to 128, and no further."""
    body = "v = DequantizeLinear <axis = 1> (w, sw, zw) m = MatMul (x, v)"
    model = _product(f"int8[3,2] w = {{127, 3, 20, -90, 100, 100}}, {_EACH}", body, parse)
    model.graph.inputs[0].shape = ir.Shape((3, 3))
    codes, scale = _reduced(model, ReduceRange(127))
    np.testing.assert_array_equal(codes[:, 1], [3, -90, 100])
    assert 120 < int(codes[0, 0]) + int(codes[1, 0]) <= 128
    assert scale[0] < 0.25 * 1.2


@pytest.mark.parametrize("magnitude", [0, 128])
def test_a_magnitude_that_int8_does_not_hold_is_refused(magnitude: int, parse: Parse) -> None:
    model = _product(f"{_WEIGHTS}, {_ONE}", "m = Identity (x)", parse)
    with pytest.raises(UsageError, match="magnitude"):
        ReduceRange(magnitude).run(model)


def test_the_textual_form_has_the_options(
    parse: Parse, apply_pass: Callable[[str, ir.Model], PassResult]
) -> None:
    model = _product(f"{_WEIGHTS}, {_ONE}", "m = Identity (x)", parse)
    assert not apply_pass("reduce-range{magnitude=32 when=always}", model).modified


def _reduced(model: ir.Model, pass_: ReduceRange | None = None) -> tuple[Array, Array]:
    """Codes and scale of the one reduced weight tensor."""
    (pass_ or ReduceRange()).run(model)
    (codes,) = (v for v in model.graph.initializers.values() if "reduced_codes" in str(v.name))
    (scale,) = (v for v in model.graph.initializers.values() if "reduced_scale" in str(v.name))
    assert codes.const_value is not None
    assert scale.const_value is not None
    return codes.const_value.numpy(), scale.const_value.numpy()


def _random_layer(seed: int, parse: Parse) -> ir.Model:
    """A convolution or a product, per channel or per tensor, u8 or s8 data, weights like trained.

    Weights are Laplace distributed, so that few pairs of a channel are large.
    """
    numbers = np.random.default_rng(seed)
    is_convolution, per_channel, signed = numbers.integers(0, 2, 3).astype(bool)
    shape = (4, 3, 3, 3) if is_convolution else (24, 4)
    weights = numbers.laplace(0, 0.1, shape)
    others = (1, 2, 3) if is_convolution else (0,)
    scale = np.abs(weights).max(axis=others if per_channel else None, keepdims=True) / 127
    codes, axis = np.rint(weights / scale).astype(int), 0 if is_convolution else 1
    dtype, middle = ("int8", -28) if signed else ("uint8", 100)
    count = f"[{scale.size}]" if per_channel else ""
    data, result = ("1,3,5,5", "1,4,3,3") if is_convolution else ("6,24", "6,4")
    return parse(
        f"agraph ({dtype}[{data}] q) => ({dtype}[{result}] y) <float s = {{0.02}},"
        f" {dtype} z = {{{middle}}}, float t = {{0.09}}, {dtype} u = {{{middle}}},"
        f" int8[{','.join(map(str, shape))}] w = {_listed(codes)},"
        f" float{count} sw = {_listed(scale)}, int8{count} zw = {_listed(0 * scale.astype(int))}>"
        f"{{ x = DequantizeLinear (q, s, z) v = DequantizeLinear <axis = {axis}> (w, sw, zw)"
        f" m = {'Conv' if is_convolution else 'MatMul'} (x, v) y = QuantizeLinear (m, t, u) }}"
    )


def _listed(array: Array) -> str:
    return f"{{{', '.join(map(repr, array.reshape(-1).tolist()))}}}"


def _accumulated(node: ir.Node, data: Array) -> tuple[Array, Array]:
    """The sums of a folded layer, for codes of its data: without VNNI and exact, [rows, channels].

    3 x 3 convolutions of one group, and products.
    """
    is_convolution = node.op_type == "QLinearConv"
    value = node.inputs[1 if node.op_type == "MatMulIntegerToFloat" else 3]
    assert value is not None
    assert value.const_value is not None
    weights = value.const_value.numpy()
    columns = summing_order(weights, axis=0 if is_convolution else -1)
    rows = _patches(data, weights.shape[2:]) if is_convolution else data
    rows = rows.reshape(-1, columns.shape[1])
    return saturating_sums(rows, columns), _exact(rows, columns)


def _patches(data: Array, kernel: tuple[int, ...]) -> Array:
    windows: Array = np.lib.stride_tricks.sliding_window_view(data, kernel, axis=(2, 3))
    return np.transpose(windows, (0, 2, 3, 4, 5, 1))


def _exact(rows: Array, columns: Array) -> Array:
    return np.einsum("nk,mk->nm", rows.astype(np.int64), columns.astype(np.int64))


def _codes_for(data: Array, node: ir.Node) -> Array:
    """Codes as the folded layer takes them: int8 ones are shifted."""
    value = node.inputs[0]
    assert value is not None
    return data.astype(np.uint8) if data.dtype == np.uint8 else (data.astype(int) + 128)


@pytest.mark.parametrize("magnitude", [64, 127])
@pytest.mark.parametrize("seed", range(40))
def test_no_data_saturates_after_the_pass(seed: int, magnitude: int, parse: Parse) -> None:
    model = _random_layer(seed, parse)
    numbers = np.random.default_rng(seed)
    low, high = (-128, 127) if model.graph.inputs[0].dtype == ir.DataType.INT8 else (0, 255)
    shape = model.graph.inputs[0].shape
    assert shape is not None
    # Extremes are as likely as not: half of the data is the smallest or the largest code.
    data = numbers.integers(low, high + 1, shape.numpy())
    data = np.where(numbers.random(data.shape) < 0.5, data, numbers.choice([low, high], data.shape))
    typed = data.astype(np.int8 if low else np.uint8)
    before = model.clone()
    FoldQdq().run(before)
    reduced = ReduceRange(magnitude).run(model)
    if saturating_layers(before):
        assert reduced.modified
    else:
        # The order that one more input channel would give counts as well.
        assert not reduced.modified or shape.numpy()[1] % 2 == 1
    FoldQdq().run(model)
    assert not saturating_layers(model)
    node = next(n for n in model.graph if n.op_type in ("QLinearConv", "QLinearMatMul"))
    saturating, exact = _accumulated(node, _codes_for(typed, node))
    np.testing.assert_array_equal(saturating, exact)


@pytest.mark.parametrize("name", ["qdq_net.onnx"])
def test_a_fixture_is_wrong_without_vnni_and_right_with_the_pass(
    name: str, fixtures_dir: Path, random_feed: Callable[..., dict[str, Array]]
) -> None:
    """Layer by layer, on the codes that reach it."""
    wrong: dict[bool, int] = {}
    for reduce in (False, True):
        model = ir.load(fixtures_dir / name)
        if reduce:
            ReduceRange().run(model)
        FoldQdq().run(model)
        layers = [n for n in model.graph if n.op_type in ("QLinearConv", "MatMulIntegerToFloat")]
        data = [value for node in layers if (value := node.inputs[0]) is not None]
        model.graph.outputs.extend(v for v in dict.fromkeys(data) if v not in model.graph.outputs)
        feed = {key: value * 4 for key, value in random_feed(model).items()}
        found = Session(model, REFERENCE).run(feed)
        wrong[reduce] = 0
        for node, value in zip(layers, data, strict=True):
            saturating, exact = _accumulated(node, found[str(value.name)])
            wrong[reduce] += int(np.count_nonzero(saturating != exact))
    assert wrong[False] > 100
    assert wrong[True] == 0


_SCRIPT = """
import sys, numpy as np, onnx_ir as ir
from onnxfold.runtime.session import DEPLOYMENT, Session
folder = sys.argv[1]
feed = dict(np.load(folder + "/feed.npz"))
for name in ("plain", "reduced"):
    outputs = Session(ir.load(f"{folder}/{name}.onnx"), DEPLOYMENT).run(feed)
    np.savez(f"{folder}/{name}.npz", **outputs)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind plays a machine with AVX2")
def test_a_fixture_computes_the_same_on_avx2_with_the_pass(
    fixtures_dir: Path, random_feed: Callable[..., dict[str, Array]], tmp_path: Path
) -> None:
    models = {name: ir.load(fixtures_dir / "qdq_net.onnx") for name in ("plain", "reduced")}
    ReduceRange().run(models["reduced"])
    for name, model in models.items():
        FoldQdq().run(model)
        ir.save(model, tmp_path / f"{name}.onnx")
    feed = {key: value * 4 for key, value in random_feed(models["plain"]).items()}
    np.savez(tmp_path / "feed.npz", allow_pickle=False, **feed)
    command = ["valgrind", "--tool=none", "-q", sys.executable, "-c", _SCRIPT, str(tmp_path)]
    subprocess.run(command, check=True, timeout=280, capture_output=True)
    off: dict[str, float] = {}
    for name, model in models.items():
        here = Session(model, DEPLOYMENT).run(feed)["logits"]
        there = np.load(tmp_path / f"{name}.npz")["logits"]
        off[name] = float(np.max(np.abs(here - there)) / np.max(np.abs(here)))
    assert off["plain"] > 0.05
    assert math.isclose(off["reduced"], 0.0, abs_tol=1e-3)
