from __future__ import annotations

import re
from pathlib import Path

import onnxfold

PAGE = Path(__file__).resolve().parents[2] / "docs" / "report.md"


def test_the_page_names_every_field_of_a_report(fixtures_dir: Path) -> None:
    report = onnxfold.optimize(fixtures_dir / "mobile_net.onnx").report.to_json()
    named = set(re.findall(r"`([a-z_0-9]+)`", PAGE.read_text(encoding="utf-8")))
    fields = {*report, *report["source"], *report["source"]["census"], *report["passes"][0]}
    fields |= set(report["verdict"]) | {"node", "op_type", "reason", "advice"}
    island = onnxfold.fold(fixtures_dir / "qdq_net.onnx").report.islands[0].to_json()
    fields |= {*island, *island["reasons"][0]}
    explanation = onnxfold.explain(fixtures_dir / "tiny_mobilenet.onnx").to_json()
    fields |= {*explanation, *explanation["costs"][0], *explanation["saturating"][0]}
    assert fields <= named
    assert report["schema"] in PAGE.read_text(encoding="utf-8")
