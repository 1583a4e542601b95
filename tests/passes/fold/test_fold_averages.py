"""Sums, means and pooling of codes, against exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, version

Target = Literal["ort", "standard", "integer", "qdq"]
TARGETS: tuple[Target, ...] = ("ort", "standard", "integer", "qdq")
Array = npt.NDArray[Any]
_SHAPE = (2, 3, 5, 7)

REDUCTIONS: dict[str, tuple[int, str, str]] = {
    "mean, attribute": (13, "ReduceMean <axes = [2, -1]> (x)", ""),
    "mean, input": (18, "ReduceMean <keepdims = 0> (x, a)", "int64[2] a = {-1, 2}"),
    "mean of rows": (18, "ReduceMean (x, a)", "int64[1] a = {3}"),
    "mean of channels last": (18, "ReduceMean <keepdims = 0> (x, a)", "int64[2] a = {1, 2}"),
    "mean of everything": (18, "ReduceMean <keepdims = 0> (x)", ""),
    "mean of nothing": (18, "ReduceMean <noop_with_empty_axes = 1> (x)", ""),
    "sum, input": (13, "ReduceSum (x, a)", "int64[1] a = {-2}"),
    "sum of batch": (13, "ReduceSum <keepdims = 0> (x, a)", "int64[1] a = {0}"),
    "sum of nothing": (13, "ReduceSum <noop_with_empty_axes = 1> (x)", ""),
    "sum, empty axes": (13, "ReduceSum <noop_with_empty_axes = 1> (x, a)", "int64[0] a = {}"),
    "global": (13, "GlobalAveragePool (x)", ""),
}

POOLS: dict[str, tuple[int, str, str]] = {
    "2x2": (13, "AveragePool <kernel_shape = [2, 2]> (x)", ""),
    "odd, strided": (13, "AveragePool <kernel_shape = [3, 2], strides = [2, 3]> (x)", ""),
    "padded": (13, "AveragePool <kernel_shape = [3, 3], pads = [1, 0, 1, 2]> (x)", ""),
    "padded, counted": (
        13,
        "AveragePool <kernel_shape = [3, 3], pads = [1, 1, 0, 2], count_include_pad = 1> (x)",
        "",
    ),
    "ceil": (
        19,
        "AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
        "",
    ),
    "ceil, padded": (
        19,
        "AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1],"
        " ceil_mode = 1> (x)",
        "",
    ),
    "dilated": (19, "AveragePool <kernel_shape = [2, 3], dilations = [2, 2]> (x)", ""),
    "dilated, padded": (
        19,
        "AveragePool <kernel_shape = [2, 3], dilations = [3, 1], pads = [1, 1, 1, 0]> (x)",
        "",
    ),
    "same upper": (
        13,
        'AveragePool <kernel_shape = [2, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)',
        "",
    ),
    "same lower": (
        13,
        'AveragePool <kernel_shape = [2, 2], auto_pad = "SAME_LOWER"> (x)',
        "",
    ),
    "valid": (13, 'AveragePool <kernel_shape = [2, 4], auto_pad = "VALID"> (x)', ""),
    "whole map": (13, "AveragePool <kernel_shape = [5, 7]> (x)", ""),
}

# Scale and zero point of the input, then of the output.
GRIDS = {
    "one scale": (0.5, 120, 0.5, 120),
    "finer": (0.37, 3, 0.041, 211),
    "coarser, odd": (0.011, 255, 0.37, 77),
}


def _model(
    case: tuple[int, str, str], grid: str, dtype: str, parse: Callable[..., ir.Model]
) -> ir.Model:
    opset, op, constants = case
    scale, zero, scale_out, zero_out = GRIDS[grid]
    low = np.iinfo(dtype).min
    shape = ",".join(map(str, _SHAPE))
    text = (
        f"agraph ({dtype}[{shape}] q) => ({dtype} y)"
        f" <float s = {{{scale}}}, {dtype} z = {{{zero + low}}},"
        f" float t = {{{scale_out}}}, {dtype} o = {{{zero_out + low}}}"
        f"{', ' if constants else ''}{constants}>"
        f" {{ x = DequantizeLinear (q, s, z) c = {op} y = QuantizeLinear (c, t, o) }}"
    )
    model = parse(text, opset=opset)
    model.graph.outputs[0].shape = None
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True))


def _feed(dtype: str) -> dict[str, Array]:
    numbers = np.random.default_rng(5).integers(0, 256, _SHAPE) + np.iinfo(dtype).min
    return {"q": numbers.astype(dtype)}


def _exact(model: ir.Model, feed: dict[str, Array], grid: str) -> Array:
    """The result before rounding, in codes: sums of codes are exact in float32."""
    wide = ir.to_proto(model)
    scale, zero, scale_out, zero_out = GRIDS[grid]
    low = np.iinfo(feed["q"].dtype).min
    float_op = next(node for node in wide.graph.node if node.output[0] == "c")
    graph = onnx.helper.make_graph(
        [float_op],
        "exact",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, _SHAPE)],
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None)],
        [each for each in wide.graph.initializer if each.name in float_op.input],
    )
    opset = wide.opset_import[0].version
    exact = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9
    )
    centred = feed["q"].astype(np.float32) - zero - low
    session = Session(ir.from_proto(exact), REFERENCE)
    ratio = float(np.float32(scale)) / float(np.float32(scale_out))
    return session.run({"x": centred})["c"].astype(np.float64) * ratio + zero_out + low


_KINDS = [("uint8", "finer"), ("int8", "one scale"), ("int8", "coarser, odd")]


@pytest.mark.parametrize(("dtype", "grid"), _KINDS)
@pytest.mark.parametrize("case", [*REDUCTIONS, *POOLS])
def test_means_are_rounded_once(
    case: str,
    grid: str,
    dtype: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
) -> None:
    if "of nothing" in case and version().startswith("1.23."):
        pytest.skip("onnxruntime 1.23 runs no reduction over no axes, float ones included")
    text = (REDUCTIONS | POOLS)[case]
    feed = _feed(dtype)
    exact = _exact(_model(text, grid, dtype, parse), feed, grid)
    limits = np.iinfo(dtype)
    wanted = np.clip(np.rint(exact), limits.min, limits.max)
    ties = np.abs(exact - np.floor(exact) - 0.5) < 3e-4
    for target in TARGETS:
        model = _model(text, grid, dtype, parse)
        apply_pass(FoldQdq(target), model)
        for config in (REFERENCE, DEPLOYMENT):
            found = Session(model, config).run(feed)["y"].astype(np.int64)
            assert found.shape == wanted.shape
            off = np.abs(found - wanted)
            assert np.max(off) <= 1, target
            assert np.mean(off[~ties] != 0) <= (1e-3 if target == "qdq" else 0), target
        if target in ("standard", "integer"):
            assert not any(
                output.dtype == ir.DataType.FLOAT for node in model.graph for output in node.outputs
            )
