"""u8 x s8 products without VNNI: the bound is tight, and the emulator is the real kernels."""

from __future__ import annotations

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
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxfold.passes.pair_saturation import (
    can_saturate,
    pair_limits,
    saturating_layers,
    saturating_sums,
    summing_order,
)

Array = npt.NDArray[Any]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([(0, 255), (20, 200)]))
@settings(max_examples=60, deadline=None)
def test_a_channel_saturates_for_some_data_exactly_where_the_bound_says_so(
    seed: int, depth: int, codes: tuple[int, int]
) -> None:
    low, high = codes
    weights = np.random.default_rng(seed).integers(-128, 128, (5, depth)).astype(np.int8)
    # The data that drives every channel up, and the data that drives it down.
    worst = np.concatenate([np.where(weights > 0, high, low), np.where(weights > 0, low, high)])
    exact = _product(worst, weights)
    differs = (saturating_sums(worst.astype(np.uint8), weights) != exact).reshape(2, 5, 5)
    own = np.diagonal(differs, axis1=1, axis2=2).any(axis=0)
    np.testing.assert_array_equal(own, can_saturate(weights, low, high))


def test_neighbours_are_added_first() -> None:
    weights = np.array([[100, 100, -100, -100], [100, -100, 100, -100], [127, 0, 0, 127]], np.int8)
    np.testing.assert_array_equal(can_saturate(weights), [True, False, False])
    np.testing.assert_array_equal(can_saturate(weights, any_order=True), [True, True, True])
    lower, upper = pair_limits(weights)
    np.testing.assert_array_equal(lower, [-51000, -25500, 0])
    np.testing.assert_array_equal(upper, [51000, 25500, 32385])


def test_the_last_of_an_odd_number_stands_alone() -> None:
    np.testing.assert_array_equal(can_saturate(np.array([[0, 0, 127], [1, 127, 127]], np.int8)), 0)


def test_the_bounds_of_int16_are_exact() -> None:
    weights = np.array([[64, 64], [65, 64], [-64, -64], [-65, -64]], np.int8)
    np.testing.assert_array_equal(can_saturate(weights), [False, True, False, True])


def test_a_convolution_sums_kernel_positions_outside_channels() -> None:
    weights = np.zeros((2, 2, 1, 2), np.int8)
    weights[0, :, 0, 0] = 127  # two channels at one position
    weights[1, 0, 0, :] = 127  # one channel at two positions
    np.testing.assert_array_equal(can_saturate(summing_order(weights, axis=0)), [True, False])


def test_a_product_sums_rows() -> None:
    weights = np.array([[127, 127], [127, 0]], np.int8)
    np.testing.assert_array_equal(can_saturate(summing_order(weights, axis=-1)), [True, False])


_QUANTIZED = "float s = {1}, uint8 z = {0}, int8 zw = {0}"
_W4 = "int8[2,2] w = {100, 1, 100, -100}"  # [K, N]: only the first column can saturate
_LAYERS = {
    "MatMulInteger": (f"<{_W4}>", "y = MatMulInteger (x, w)", "int32"),
    "QLinearMatMul": (
        f"<{_W4}, {_QUANTIZED}>",
        "y = QLinearMatMul (x, s, z, w, s, zw, s, z)",
        "uint8",
    ),
    "QGemm": (
        f"<int8[2,2] w = {{100, 100, 1, -100}}, {_QUANTIZED}, int32[2] b = {{1, 2}}>",
        "y = com.microsoft.QGemm <transB = 1> (x, s, z, w, s, zw, b, s, z)",
        "uint8",
    ),
    "MatMulIntegerToFloat": (
        f"<{_W4}, {_QUANTIZED}>",
        "y = com.microsoft.MatMulIntegerToFloat (x, w, s, s)",
        "float",
    ),
}


@pytest.mark.parametrize("op_type", _LAYERS)
def test_layers_that_saturate_are_found(op_type: str, parse: Callable[..., ir.Model]) -> None:
    constants, node, output = _LAYERS[op_type]
    model = _model(f"uint8[3,2] x) => ({output}[3,2] y", constants, node, parse)
    (layer,) = saturating_layers(model)
    assert (layer.node.op_type, layer.channels, layer.of) == (op_type, 1, 2)
    assert layer.largest == 51000


def test_a_clip_limits_the_data(parse: Callable[..., ir.Model]) -> None:
    constants = f"<{_W4}, uint8 low = {{0}}, uint8 high = {{160}}>"
    node = "c = Clip (x, low, high) r = Transpose (c) y = MatMulInteger (r, w)"
    assert not saturating_layers(_model("uint8[2,2] x) => (int32[2,2] y", constants, node, parse))


@pytest.mark.parametrize(
    ("signature", "constants", "node"),
    [
        ("uint8[3,2] x) => (int32[3,2] y", "<uint8[2,2] w = {255, 255, 255, 255}>", ""),
        ("int8[3,2] x) => (int32[3,2] y", f"<{_W4}>", ""),
        ("uint8[3,2] x, uint8[2,2] w) => (int32[3,2] y", "", ""),
        (
            "uint8[1,2,4,4] x) => (uint8[1,2,3,3] y",
            f"<int8[2,1,2,2] w = {{99, 99, 99, 99, 99, 99, 99, 99}}, {_QUANTIZED}>",
            "y = QLinearConv <group = 2> (x, s, z, w, s, zw, s, z)",
        ),
        (
            "uint8[1,2,4,4] x) => (int32[1,1,3,3] y",
            "<int8[1,2,2,2] w = {99, 99, 99, 99, 99, 99, 99, 99}>",
            "y = ConvInteger (x, w)",
        ),
    ],
    ids=["uint8 weights", "int8 data", "computed weights", "depthwise", "ConvInteger"],
)
def test_what_is_exact_on_every_machine_is_not_reported(
    signature: str, constants: str, node: str, parse: Callable[..., ir.Model]
) -> None:
    model = _model(signature, constants, node or "y = MatMulInteger (x, w)", parse)
    assert not saturating_layers(model)


def _model(signature: str, constants: str, node: str, parse: Callable[..., ir.Model]) -> ir.Model:
    header = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
    return parse(f"{header} agraph ({signature}) {constants} {{ {node} }}")


_SCRIPT = """
import sys, numpy as np, onnx_ir as ir
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
folder = sys.argv[1]
feeds = np.load(folder + "/feeds.npz")
found = {}
for name in feeds.files:
    model = ir.load(f"{folder}/{name}.onnx")
    for label, config in (("on", DEPLOYMENT), ("off", REFERENCE)):
        found[f"{name}.{label}"] = Session(model, config).run({"x": feeds[name]})["y"]
np.savez(folder + "/found.npz", **found)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind plays a machine with AVX2")
def test_the_emulator_computes_what_the_avx2_kernels_compute(
    parse: Callable[..., ir.Model], tmp_path: Path
) -> None:
    """Valgrind executes AVX2 and says that it has neither AVX-512 nor VNNI."""
    numbers = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    wanted: dict[str, tuple[Array, Array]] = {}
    for rows, depth, columns in [(1, 64, 32), (5, 67, 33), (2, 1001, 17), (3, 5, 3)]:
        data = numbers.integers(0, 256, (rows, depth)).astype(np.uint8)
        weights = numbers.integers(-128, 128, (depth, columns)).astype(np.int8)
        name = f"product_{rows}_{depth}"
        model = _model(
            f"uint8[{rows},{depth}] x) => (int32[{rows},{columns}] y",
            f"<int8[{depth},{columns}] w = {_listed(weights)}>",
            "y = MatMulInteger (x, w)",
            parse,
        )
        ir.save(model, tmp_path / f"{name}.onnx")
        emulated = saturating_sums(data, summing_order(weights, axis=-1))
        feeds[name], wanted[name] = data, (emulated, _product(data, np.transpose(weights)))
    for channels, outputs, groups in [(8, 16, 1), (3, 16, 1), (5, 7, 1), (4, 6, 2), (6, 6, 6)]:
        data = numbers.integers(0, 256, (1, channels, 6, 6)).astype(np.uint8)
        weights = numbers.integers(-128, 128, (outputs, channels // groups, 3, 3)).astype(np.int8)
        name = f"convolution_{channels}_{outputs}_{groups}"
        model = _model(
            f"uint8[1,{channels},6,6] x) => (uint8[1,{outputs},4,4] y",
            f"<int8[{','.join(map(str, weights.shape))}] w = {_listed(weights)}, float s = {{1}},"
            " float sy = {300}, uint8 z = {0}, int8 zw = {0}, uint8 zy = {128}>",
            f"y = QLinearConv <group = {groups}> (x, s, z, w, s, zw, sy, zy)",
            parse,
        )
        ir.save(model, tmp_path / f"{name}.onnx")
        feeds[name], wanted[name] = data, _convolved(data, weights, groups)
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **feeds)
    command = ["valgrind", "--tool=none", "-q", sys.executable, "-c", _SCRIPT, str(tmp_path)]
    subprocess.run(command, check=True, timeout=280, capture_output=True)
    found = np.load(tmp_path / "found.npz")
    for name, (emulated, exact) in wanted.items():
        depthwise = name.endswith("6_6_6")
        assert depthwise or not np.array_equal(emulated, exact)
        for label in ("on", "off"):
            expected = exact if depthwise else emulated
            np.testing.assert_array_equal(found[f"{name}.{label}"], expected, err_msg=name)


def _listed(codes: Array) -> str:
    return f"{{{', '.join(map(str, codes.reshape(-1).tolist()))}}}"


def _convolved(data: Array, weights: Array, groups: int) -> tuple[Array, Array]:
    """Codes of a 3 x 3 convolution, in units of 300: saturating and exact, [1, M, h, w]."""
    windows: Array = np.lib.stride_tricks.sliding_window_view(data[0], (3, 3), axis=(1, 2))
    channels, height, width = windows.shape[:3]
    saturating: list[Array] = []
    exact: list[Array] = []
    for group in range(groups):
        own: Array = windows[group * channels // groups : (group + 1) * channels // groups]
        turned: Array = np.transpose(own, (1, 2, 3, 4, 0))
        columns: Array = turned.reshape(height * width, -1)
        rows = summing_order(np.split(weights, groups)[group], axis=0)
        saturating.append(saturating_sums(columns, rows))
        exact.append(_product(columns, rows))
    shape = (1, -1, height, width)
    return _rounded(saturating, shape), _rounded(exact, shape)


def _rounded(sums: list[Array], shape: tuple[int, ...]) -> Array:
    joined: Array = np.concatenate(sums, axis=1)
    codes: Array = np.rint(np.transpose(joined) / np.float32(300)) + 128
    return np.clip(codes, 0, 255).astype(np.uint8).reshape(shape)


def _product(rows: Array, columns: Array) -> Array:
    """Exact sums of [n, K] by [m, K]."""
    left: Array = rows.astype(np.int64)
    right: Array = columns.astype(np.int64)
    return np.einsum("nk,mk->nm", left, right)
