from __future__ import annotations

from typing import Any

import pytest

from onnxfold.runtime.report.summary import (
    passes_that_changed,
    share_in_words,
    state,
    summary,
)


def row(text: str, rewrites: int, status: str = "passed") -> dict[str, Any]:
    return {
        "pass": text,
        "contract": "exact",
        "modified": rewrites > 0,
        "seconds": 0.5,
        "rules": {"rule": rewrites},
        "evidence": {"verdict": {"status": status}} if status else {},
    }


def report(**changes: Any) -> dict[str, Any]:
    census = {"ops": {"Conv": 1}, "integer_share": 0.0}
    facts = {"path": "m.onnx", "bytes": 1000, "census": census}
    document: dict[str, Any] = {
        "decisions": [],
        "passes": [],
        "latency": {},
        "task": {},
        "source": facts,
        "result": facts,
        "data": {},
        "equivalence": {"samples": 1},
        "verdict": {"passed": True, "reasons": []},
    }
    return {**document, **changes}


def test_runs_of_one_pass_are_one_row() -> None:
    rows = [row("a{x=1}", 2), row("b", 0), row("c", 1, ""), row("a", 3, "inconclusive")]
    first, second = passes_that_changed(rows)
    assert (first.name, first.rewrites, first.seconds) == ("a", 5, 1.0)
    assert (first.status, second.status) == ("inconclusive", "")


def test_the_last_lines_give_the_figures_that_decide() -> None:
    latency = {"models": {"original": {"median_ms": 2.0, "relative": 1.0}}}
    chosen = {"candidate": "all", "median_ms": 1.0, "relative": 0.51, "outcome": "chosen"}
    task = {"rows": 50, "original_accuracy": 0.98, "accuracy": 0.96}
    lines = list(summary(report(latency=latency, decisions=[chosen], task=task)))
    assert lines[:3] == [
        "latency: 2.000 -> 1.000 ms, 0.51 of the original in paired runs",
        "accuracy: 98.00% -> 96.00% on 50 labelled samples",
        "size: 1,000 -> 1,000 bytes",
    ]
    assert lines[-1] == "passed: m.onnx"


def test_a_model_that_stays_as_it_came_is_said_to() -> None:
    latency = {"models": {"original": {"median_ms": 2.0, "relative": 1.0}}}
    assert "stays as it came" in next(summary(report(latency=latency)))


def test_a_qdq_model_is_not_called_float() -> None:
    census = {"ops": {"DequantizeLinear": 2}, "integer_share": 0.0}
    facts = {"path": "", "bytes": 1, "census": census}
    assert any("in QDQ form" in line for line in summary(report(result=facts)))


@pytest.mark.parametrize(
    ("passed", "equivalence", "text"),
    [(True, {"samples": 1}, "passed"), (True, {}, "numbers not checked"), (False, {}, "inconc")],
)
def test_nothing_unchecked_is_called_passed(passed: bool, equivalence: Any, text: str) -> None:
    verdict: dict[str, Any] = {"passed": passed, "reasons": []}
    assert state(report(verdict=verdict, equivalence=equivalence)).startswith(text)


def test_a_fold_says_what_it_changed_operator_by_operator() -> None:
    fold = row("fold-qdq{target=qdq}", 3)
    fold["evidence"]["regions"] = {"mismatches": 3, "elements": 459128, "ties": 7}
    expected = "operator by operator: 3 of 459,128 numbers differ, 7 more by ties"
    assert expected in list(summary(report(passes=[row("a", 1), fold])))
    other = row("lower-conv-transpose", 1)
    other["evidence"]["regions"] = fold["evidence"]["regions"]
    lines = [line.split(":")[0] for line in summary(report(passes=[other, fold]))]
    assert [line for line in lines if line.startswith("operator")] == [
        "operator by operator (lower-conv-transpose)",
        "operator by operator (fold-qdq)",
    ]


def test_nearly_all_is_not_called_all() -> None:
    shares = (0.0, 1e-6, 0.5, 0.9997, 1.0)
    assert [share_in_words(each) for each in shares] == ["0.0%", "0.1%", "50.0%", "99.9%", "100.0%"]


def test_what_excuses_large_differences_is_said() -> None:
    drift = [{"sqnr_db": 25.04}, {"sqnr_db": "inf"}]
    regions = {"mismatches": 0, "elements": 2000, "ties": 3}
    seen = {"samples": 1, "contract": "integer", "drift": drift, "regions": regions}
    moved, compared = list(summary(report(equivalence=seen)))[-3:-1]
    assert moved.startswith("the original's own outputs move to 25.0 dB where its scales move")
    assert compared.endswith("0 of 2,000 numbers differ, 3 more by ties")
    plain = {"samples": 1, "contract": "exact", "drift": drift, "regions": None}
    assert not any("move to" in line for line in summary(report(equivalence=plain)))
