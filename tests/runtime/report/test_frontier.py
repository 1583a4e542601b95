from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import onnxfold
from onnxfold.runtime.report.content import report_blocks
from onnxfold.runtime.report.frontier import Point, draw, frontier, points
from onnxfold.runtime.report.write import write_report

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, relative: float | None, score: float | None, outcome: str) -> dict[str, Any]:
    return {
        "candidate": name,
        "relative": relative,
        "score_db": score,
        "passed": outcome != "missed",
        "outcome": outcome,
    }


ROWS = [
    row("all", 0.4, 30.0, "measured"),
    row("slow <&>", 0.9, 28.0, "measured"),
    row("near", 0.7, 45.0, "mixed precision"),
    row("unmeasured", None, 50.0, "climbed"),
    row("bad", 0.3, 5.0, "missed"),
    row("all", 0.41, 31.0, "chosen"),
]


def test_points_have_both_figures_and_the_last_word_on_each() -> None:
    found = {each.name: each for each in points(ROWS)}
    assert set(found) == {"all", "slow <&>", "near", "bad"}
    assert found["all"] == Point("all", 0.41, 31.0, "chosen")
    assert found["bad"].state == "missed"


def test_the_frontier_is_what_nothing_beats() -> None:
    assert [each.name for each in frontier(points(ROWS))] == ["bad", "all", "near"]


def test_faster_is_to_the_left_and_nearer_is_up() -> None:
    document = ElementTree.fromstring(draw(points(ROWS)))
    marks = {
        (mark[0].text or "").split(":")[0]: mark.attrib
        for mark in document.iter(f"{SVG}circle")
        if len(mark)
    }
    assert float(marks["bad"]["cx"]) < float(marks["all"]["cx"]) < float(marks["near"]["cx"])
    assert float(marks["near"]["cy"]) < float(marks["all"]["cy"]) < float(marks["bad"]["cy"])
    assert "slow <&>" in marks


def test_the_picture_lies_beside_the_report(fixtures_dir: Path, tmp_path: Path) -> None:
    report = onnxfold.optimize(fixtures_dir / "conv_net.onnx").report.to_json()
    write_report(report, report_blocks(report), tmp_path / "none")
    assert not (tmp_path / "none" / "frontier.svg").exists()
    rows = [{"quality": "", "median_ms": 1.0, **each} for each in ROWS]
    report = {**report, "decisions": rows}
    write_report(report, report_blocks(report), tmp_path / "some")
    assert (tmp_path / "some" / "frontier.svg").read_text(encoding="utf-8").startswith("<svg")
    assert "](frontier.svg)" in (tmp_path / "some" / "report.md").read_text(encoding="utf-8")
