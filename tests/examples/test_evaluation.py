"""The examples' table: what is measured, and how it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from examples import evaluation
from examples.evaluation import Island, evaluate, group_islands, sqnr_db, table_rows

DOUBLE = """
<ir_version: 10, opset_import: ["" : 21]>
double (float[N,3] x) => (float[N,3] y) { y = Add(x, x) }
"""
REVERSED_WHERE_LARGE = """
<ir_version: 10, opset_import: ["" : 21]>
other (float[N,3] x) => (float[N,3] y) <float ten = {10.0}>
{ doubled = Add(x, x)  negative = Neg(doubled)  large = Greater(x, ten)
  y = Where(large, negative, doubled) }
"""


def _save(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_rates_count_top1_and_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "ROUNDS", {1: 3})
    old, new = _save(tmp_path / "a.onnx", DOUBLE), _save(tmp_path / "b.onnx", REVERSED_WHERE_LARGE)
    inputs = np.array([[1, 2, 0], [3, 1, 0], [5, 20, 0], [0, 1, 7]], dtype=np.float32)
    result = evaluate(old, new, inputs, np.array([1, 0, 1, 0]), [("Add", "shapes differ")])
    assert result.float_top1 == 0.75
    assert result.compiled_top1 == 0.5
    assert result.agreement == 0.75
    assert result.float_bytes == old.stat().st_size
    assert set(result.float_ms) == set(result.compiled_ms) == {1}
    assert all(value > 0 for value in result.compiled_ms.values())


def test_sqnr_is_in_decibels() -> None:
    reference = np.array([[3.0, 4.0]], dtype=np.float32)
    assert sqnr_db(reference, reference + np.array([0.5, 0.0], dtype=np.float32)) == pytest.approx(
        20.0
    )
    assert sqnr_db(reference, reference) == float("inf")


def test_islands_with_the_same_reason_are_one_row() -> None:
    nodes = [("Tanh", "no integer kernel"), ("Mul", "slower"), ("Mul", "slower")]
    islands = group_islands(nodes)
    assert islands == (Island("Mul", 2, "slower"), Island("Tanh", 1, "no integer kernel"))


def test_table_states_every_figure_once() -> None:
    measured = evaluation.Evaluation(
        samples=1000,
        float_top1=0.98,
        compiled_top1=0.9775,
        agreement=0.995,
        sqnr_db=21.04,
        float_ms={1: 6.0, 32: 180.0},
        compiled_ms={1: 3.0, 32: 60.0},
        float_bytes=3_160_000,
        compiled_bytes=1_200_000,
        islands=(Island("Mul", 2, "slower"),),
    )
    assert table_rows(measured) == [
        ("top-1 (1000 samples)", "98.00 %", "97.75 %"),
        ("agreement with float", "", "99.50 %"),
        ("SQNR of the output", "", "21.0 dB"),
        ("latency, batch 1", "6.00 ms", "3.00 ms (2.0x)"),
        ("latency, batch 32", "180.00 ms", "60.00 ms (3.0x)"),
        ("size", "3.16 MB", "1.20 MB"),
        ("could be integer, left in float", "", "2 Mul: slower"),
    ]
