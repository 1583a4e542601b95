"""Grouping: the same reason is told once, with how often it holds and what it costs."""

from __future__ import annotations

from typing import Any

from onnxfold.runtime.report.groups import (
    extent,
    group_islands,
    group_remarks,
    other_remarks,
)


def remark(node: str, reason: str = "no rule", by: str = "fold-qdq") -> dict[str, str]:
    return {"node": node, "op_type": "Relu", "pass": by, "reason": reason, "advice": ""}


def island(name: str, reason: str, share: float | None, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cause": "cannot",
        "reasons": [{"reason": reason, "advice": "", "op_type": "Softmax", "nodes": [name]}],
        "nodes": [f"dq_{name}", name],
        "ops": {"Softmax": 1, "DequantizeLinear": 1},
        "float_ops": 1,
        "time_share": share,
    }
    return {**found, **changes}


def test_nodes_with_one_reason_are_one_group_and_few_are_named() -> None:
    many = [remark(f"n{index}") for index in range(9)]
    big, other = group_remarks([remark("a", "other"), *many])
    assert (other.nodes, big.reason, len(big.nodes)) == (("a",), "no rule", 9)
    assert big.shown_nodes() == ("n0", "n1", "n2", "... and 6 more")
    assert group_remarks(many[:4])[0].shown_nodes() == ("n0", "n1", "n2", "n3")


def test_reasons_that_differ_in_names_are_one_group() -> None:
    (group,) = group_remarks([remark(name, f"'{name}' is not quantized") for name in "abc"])
    assert (group.reason, group.nodes) == ("'a' is not quantized", ("a", "b", "c"))
    (islands,) = group_islands([island(name, f"'{name}' is float", 0.1) for name in "abc"])
    assert (islands.count, islands.float_ops, islands.share) == (3, 3, "30.0%")
    assert islands.shown_places() == ("a", "b", "c")
    assert islands.contents == "3 x (Softmax, with DequantizeLinear)"
    assert islands.reasons == (("Softmax: 'a' is float", ""),)


def test_the_slowest_come_first_and_what_is_on_purpose_last() -> None:
    edge = island("edge", "the graph input is float", 0.9, cause="on purpose", ops={"Cast": 2})
    groups = group_islands([edge, island("a", "slow", 0.1), island("b", "slower", 0.2)])
    assert [group.share for group in groups] == ["20.0%", "10.0%", "90.0%"]
    assert groups[-1].contents == "2 Cast"


def test_what_was_not_measured_has_no_share() -> None:
    islands = [island("a", "x", None)]
    assert group_islands(islands)[0].share == ""
    assert extent(islands) == "1 island, 1 float operator"
    assert extent([*islands, island("b", "x", 0.5)]).endswith("50.0% of the run time")


def test_remarks_that_islands_tell_are_not_told_again() -> None:
    whole = {**remark("(whole model)", "broke its contract", "compile"), "op_type": ""}
    left_out = {**remark("n", "broke its contract", "fuse-x"), "op_type": ""}
    others = other_remarks([remark("a"), left_out, whole])
    assert [row["node"] for row in others] == ["n", "(whole model)"]
    assert [group.op_type for group in group_remarks(others)] == ["fuse-x", "compile"]
