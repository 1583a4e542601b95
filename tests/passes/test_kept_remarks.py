"""Reasons that stay in a folded model: a second look at it finds those of the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxfold.passes.islands import Island, find_islands
from onnxfold.passes.kept_remarks import KEY, keep_remarks, kept_remarks
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.remark import Remark

_TEXT = """
g (uint8[1,4,6,6] q) => (uint8[1,4,6,6] y, uint8[1,4,6,6] v)
<float s = {0.05}, uint8 z = {120}>
{
  x = DequantizeLinear (q, s, z)
  h = HardSwish (x)
  y = QuantizeLinear (h, s, z)
  m = Transpose <perm = [0, 1, 3, 2]> (x)
  r = Div (m, x)
  v = QuantizeLinear (r, s, z)
}
"""


def _islands(model: ir.Model, target: str) -> tuple[ir.Model, tuple[Island, ...]]:
    done = Pipeline(parse_passes(folding(target))).run(model)
    remarks = [remark for _, result in done.results for remark in result.remarks]
    return done.model, find_islands(done.model, remarks)


def _said(islands: tuple[Island, ...]) -> list[tuple[str, str]]:
    return sorted((each.cause.value, each.reason) for each in islands)


@pytest.mark.parametrize("target", ["ort", "standard"])
def test_a_fold_of_a_fold_gives_the_reasons_of_the_first(
    target: str, parse: Callable[..., ir.Model]
) -> None:
    folded, first = _islands(parse(_TEXT), target)
    _, second = _islands(folded.clone(), target)
    assert first
    assert _said(second) == _said(first)
    assert _said(find_islands(folded)) == _said(first), "nor does it take another fold"


def test_what_float_kernels_compute_stays_measured(tmp_path: Path, fixtures_dir: Path) -> None:
    folded, first = _islands(ir.load(fixtures_dir / "tiny_mobilenet.onnx"), "ort")
    ir.save(folded, tmp_path / "folded.onnx")
    _, second = _islands(ir.load(tmp_path / "folded.onnx"), "ort")
    assert _said(second) == _said(first)
    measured = [each for each in second if "(measured)" in each.reason]
    assert {each.advice for each in measured} <= {
        "fold the model that it was made of again, for target standard"
    }


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["fold-qdq"]]', '{"a": 1}'])
def test_metadata_of_others_is_no_remark(text: str) -> None:
    node = ir.Node("", "Relu", [None], name="n", metadata_props={KEY: text})
    assert kept_remarks(node) == []


def test_what_was_said_before_stays(parse: Callable[..., ir.Model]) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    node = next(iter(model.graph))
    for reason in ("first", "second"):
        remark = Remark("fold-qdq", node.name or "y", "Relu", reason, "advice")
        keep_remarks(model, [remark], [node])
    assert [each.reason for each in kept_remarks(node)] == ["first"]
    keep_remarks(model, [], [])
    assert kept_remarks(node) == []
