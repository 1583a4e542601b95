"""quantize_static: ONNX Runtime's own arguments, and what becomes of each."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

import onnxfold
from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.insert_qdq import InsertQdq


class Reader:
    """What ONNX Runtime calls a CalibrationDataReader."""

    def __init__(self, model: Path, count: int = 16) -> None:
        spec = ir.load(model).graph.inputs[0]
        assert spec.shape is not None
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        rng = np.random.default_rng(3)
        feeds = (rng.normal(size=shape).astype(np.float32) for _ in range(count))
        self._feeds = iter([{spec.name or "": feed} for feed in feeds])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


@pytest.fixture
def net(fixtures_dir: Path) -> Path:
    return fixtures_dir / "conv_net.onnx"


def found(outcome: onnxfold.Outcome, kind: type) -> Any:
    assert outcome.plan is not None
    return next(each for each in outcome.plan.passes if isinstance(each, kind))


def quantize(net: Path, folder: Path, **arguments: Any) -> onnxfold.Outcome:
    out = folder / "out.onnx"
    # Within such a budget and for a target that is not timed, something is always quantized.
    arguments = {"quant_format": QuantFormat.QDQ, "preset": "fast", **arguments}
    outcome = onnxfold.quantize_static(net, out, Reader(net), budget="sqnr=5", **arguments)
    assert out.is_file()
    return outcome


def test_it_takes_the_arguments_of_the_function_it_stands_in_for() -> None:
    ours = list(inspect.signature(onnxfold.quantize_static).parameters.values())
    positional = [each.name for each in ours if each.kind is each.POSITIONAL_OR_KEYWORD]
    theirs_module: Any = importlib.import_module("onnxruntime.quantization")
    theirs = list(inspect.signature(theirs_module.quantize_static).parameters)
    assert positional[: len(theirs)] == theirs


def test_its_enumerations_are_understood(net: Path, tmp_path: Path) -> None:
    outcome = quantize(
        net,
        tmp_path,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=False,
        calibrate_method=CalibrationMethod.Percentile,
        extra_options={"CalibPercentile": 99.5, "ActivationSymmetric": True},
    )
    insert = found(outcome, InsertQdq)
    assert (insert.activations, insert.weights, insert.per_channel) == ("s8", "s8", False)
    assert insert.symmetric
    assert found(outcome, FoldQdq).target == "qdq"
    candidates = [row["candidate"] for row in outcome.report.decisions]
    assert all("percentile{percentile=99.5}" in each for each in candidates if "(" in each)


def test_nodes_can_be_named_and_excluded(net: Path, tmp_path: Path) -> None:
    names = [node_name(node) for node in ir.load(net).graph if node.op_type == "Conv"]
    assert len(names) > 1
    insert = found(quantize(net, tmp_path, nodes_to_exclude=names[:1]), InsertQdq)
    assert insert.skip == tuple(names[:1])
    insert = found(quantize(net, tmp_path, nodes_to_quantize=names[:1]), InsertQdq)
    assert insert.only == tuple(names[:1])
    insert = found(quantize(net, tmp_path, op_types_to_quantize=["Conv"]), InsertQdq)
    assert insert.op_types == ("Conv",)


def test_without_a_format_the_result_is_made_for_onnxruntime(net: Path, tmp_path: Path) -> None:
    outcome = onnxfold.quantize_static(net, tmp_path / "a.onnx", Reader(net), preset="fast")
    assert outcome.plan is not None
    targets = {each.target for each in outcome.plan.passes if isinstance(each, FoldQdq)}
    assert targets <= {"ort"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_type": QuantType.QFLOAT8E4M3FN}, "weight_type: 'QFLOAT8E4M3FN' is not one of"),
        ({"calibrate_method": "Minmax"}, "calibrate_method: 'Minmax' is not one of MinMax"),
        ({"extra_options": {"CalibPercentil": 1}}, "did you mean 'CalibPercentile'"),
        ({"calibration_providers": ["CUDAExecutionProvider"]}, "calibrates on the CPU"),
        ({"nodes_to_exclude": ["nobody"]}, "no node 'nobody'"),
    ],
)
def test_what_has_no_counterpart_is_refused_and_nothing_is_written(
    net: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        quantize(net, tmp_path, **arguments)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())
