"""TensorFlow Lite's four modes on small float models: what they leave, and how near it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.io_types import float_edges
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import OPTIMIZE, Mode, quantizing
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.calibrate.calibrate import calibrate
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import compare_models

Array = npt.NDArray[Any]


def _float_model(path: Path) -> ir.Model:
    return Pipeline(parse_passes(OPTIMIZE)).run(ir.load(path)).model


def _dense() -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[N,256] x) => (float[N,128] y) { a = MatMul(x, w) b = Relu(a) y = Gemm(b, v) }"
    )
    for name, shape in (("w", (256, 256)), ("v", (256, 128))):
        array = (rng.normal(size=shape) / 16).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def _feeds(model: ir.Model) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    shapes = {
        value.name or "": [dim if isinstance(dim, int) else 2 for dim in value.shape or ()]
        for value in model.graph.inputs
    }
    return [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(6)
    ]


def _ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("name", ["tiny_resnet_float", "dense"])
def test_modes(mode: Mode, name: str, fixtures_dir: Path, tmp_path: Path) -> None:
    model = _dense() if name == "dense" else _float_model(fixtures_dir / f"{name}.onnx")
    feeds = _feeds(model)
    names = (*tensors_to_observe(model, PlacementOptions()), *sorted(float_edges(model)))
    path = tmp_path / "ran ges.json"
    calibrate(model, list(dict.fromkeys(names)), feeds).save(path)
    result = Pipeline(parse_passes(quantizing(mode, str(path)))).run(model.clone()).model
    ops = _ops(result)
    edges = [value.dtype for value in (*result.graph.inputs, *result.graph.outputs)]
    if mode == "full-integer":
        assert set(edges) == {ir.DataType.INT8}
        assert ops["QLinearConv"] or ops["QLinearMatMul"]
    else:
        assert set(edges) == {ir.DataType.FLOAT}
    if mode == "16x8":
        kinds = {
            node.inputs[2].dtype
            for node in result.graph
            if node.op_type == "QuantizeLinear" and node.inputs[2] is not None
        }
        assert kinds == {ir.DataType.INT16}
    if mode == "dynamic-range":
        assert ops["MatMulInteger"] == (2 if name == "dense" else 0)
    if mode == "float16":
        assert ops["Cast"] > 0
    if mode == "int4-weights":
        assert ops["MatMulNBits"] == (2 if name == "dense" else 0)
    noise = 17.0 if mode == "int4-weights" else 20.0
    budget = Budget(sqnr_db=noise, cosine=0.99, max_flip_rate=None)
    comparison = compare_models(model, result, feeds, Contract.APPROXIMATE, budget)
    assert comparison.verdict.passed, comparison.verdict.reasons
