from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import UsageError
from onnxfold.passes.island_reasons import Cause, Reason
from onnxfold.passes.islands import Island
from onnxfold.passes.remark import Remark
from onnxfold.runtime.report.content import report_blocks
from onnxfold.runtime.report.markdown import escape, table, to_markdown
from onnxfold.runtime.report.report import ModelFacts, PassRow, Report, distinct_remarks
from onnxfold.runtime.report.write import write_report, write_text

CENSUS: dict[str, Any] = {"ops": {"Conv": 2}, "integer_share": 0.25}


def report() -> Report:
    return Report(
        command="compile",
        passed=True,
        reasons=(),
        source=ModelFacts("in.onnx", "aa", 100, CENSUS),
        result=ModelFacts("out.onnx", "bb", 50, CENSUS),
        data={"description": "d.npz"},
        passes=(
            PassRow("fold-qdq", Contract.INTEGER, True, 0.5, {"conv": 2}),
            PassRow("infer-shapes", Contract.EXACT, False, 0.1, {}),
        ),
        latency={"models": {"original": {"median_ms": 2.0, "relative": 1.0}}},
        decisions=(
            {
                "candidate": "all",
                "median_ms": None,
                "relative": None,
                "quality": "SQNR 30 dB",
                "outcome": "misses the budget",
            },
        ),
        islands=(
            Island(
                Cause.FIXABLE,
                (Reason("no output scale", "add a Q", "Conv", ("a|b<script>",)),),
                ("a|b<script>", "q"),
                {"Conv": 1, "QuantizeLinear": 1},
                1,
                ("x",),
                ("y",),
                0.125,
            ),
        ),
        remarks=(Remark("fuse-softmax", "s", "Div", "needs opset 13", "run upgrade-opset"),),
    )


def markdown(document: dict[str, Any]) -> str:
    return to_markdown(report_blocks(document))


def test_every_part_of_the_report_is_rendered() -> None:
    text = markdown(report().to_json())
    for heading in ("Models", "Latency", "Passes", "What was measured", "Left in float"):
        assert f"## {heading}" in text
    assert "| fold-qdq | integer | conv x2 | 0.500 |  |" in text
    assert "Without effect: infer-shapes." in text
    assert "25.0%" in text


def test_an_island_says_what_it_costs_and_what_would_change_it() -> None:
    text = markdown(report().to_json())
    assert "## Left in float: 1 island, 1 float operator, 12.5% of the run time" in text
    assert "| 12.5% | can be changed | Conv, with QuantizeLinear |" in text
    assert "| Conv: no output scale | add a Q |" in text
    assert "## Remarks of passes: 1" in text
    assert "| Div | s | needs opset 13 | run upgrade-opset |" in text


def test_names_from_the_model_cannot_act_as_markup() -> None:
    text = markdown(report().to_json())
    assert "a\\|b&lt;script>" in text
    assert "<script>" not in text
    assert escape("a\nb `c` [d](e)") == "a b \\`c\\` \\[d\\](e)"


def test_a_page_of_options_is_left_to_the_json() -> None:
    document = report().to_json()
    document["passes"][0]["pass"] = f"insert-qdq{{ranges={'x' * 200}}}"
    text = markdown(document)
    assert "| insert-qdq{...} | integer |" in text
    assert "xxx" not in text


def test_the_data_are_named_and_counted() -> None:
    document = report().to_json()
    document["data"] = {"description": "d.npz", "count": 12, "sha256": "ab"}
    assert markdown(document).endswith("Data: d.npz, 12 feeds, sha256 ab.\n")


def test_the_title_says_what_the_evidence_is_worth() -> None:
    document = report().to_json()
    assert markdown(document).startswith("# onnxfold compile: numbers not checked\n")
    document["verdict"]["passed"] = False
    assert markdown(document).startswith("# onnxfold compile: inconclusive\n")


def test_a_table_ends_with_an_empty_line() -> None:
    assert table(("a", "b"), [(1, "x")]) == ["| a | b |", "| --- | --- |", "| 1 | x |", ""]


def test_the_last_word_on_a_node_wins() -> None:
    first, last = (Remark("p", "n", "Conv", reason) for reason in ("early", "late"))
    assert distinct_remarks([first, last]) == (last,)


def test_reports_are_written_whole(tmp_path: Path) -> None:
    document = report().to_json()
    write_report(document, report_blocks(document), tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_text(tmp_path / "report.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_an_unwritable_place_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot write"):
        write_text(tmp_path / "file" / "report.json", "{}")


def test_integer_passes_show_what_was_seen_region_by_region() -> None:
    regions = {"checked": 7, "regions": 8, "elements": 900, "mismatches": 1, "ties": 20}
    evidence = {"verdict": {"status": "passed"}, "regions": regions}
    document = report().to_json()
    document["passes"][0]["evidence"] = evidence
    assert "| passed; 7 of 8 regions, 900 numbers: 1 differ, 20 more by ties |" in markdown(
        document
    )
