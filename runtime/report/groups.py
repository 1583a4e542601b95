"""Repetition taken out of islands and remarks, so that a page shows a large model's reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxfold.passes.island_reasons import ABOUT_FLOAT, Cause, shape_of_reason

_SHOWN_NODES = 3
_SHOWN_OPERATORS = 6
_SHOWN_REASONS = 4
_WHOLE_MODEL = "(whole model)"
_EDGES = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class RemarkGroup:
    """Nodes of one operator left as they are for the same reason.

    Attributes:
        op_type: The operator, or the pass that speaks.
        reason: Why.
        advice: What would change it; may be empty.
        nodes: Their names.
    """

    op_type: str
    reason: str
    advice: str
    nodes: tuple[str, ...]

    def shown_nodes(self) -> tuple[str, ...]:
        """The first few names, and how many more there are."""
        return _first_few(self.nodes)


@dataclass(frozen=True)
class IslandGroup:
    """Islands of the same operators with the same reasons.

    Attributes:
        cause: Whose decision it is that they stay.
        content: Their operators, in words; of one of them.
        count: How many there are.
        float_ops: Operators in all of them that are neither Q nor DQ.
        reasons: The first one's reasons, each with its advice.
        places: Where they are: the names of what they compute on.
        time_share: Of all of them together, 0 to 1; None where it was not measured.
    """

    cause: str
    content: str
    count: int
    float_ops: int
    reasons: tuple[tuple[str, str], ...]
    places: tuple[str, ...]
    time_share: float | None

    def shown_places(self) -> tuple[str, ...]:
        """The first few names, and how many more there are."""
        return _first_few(self.places)

    def shown_reasons(self) -> tuple[tuple[str, str], ...]:
        """The reasons that decide, each with its advice, and how many more there are."""
        more = len(self.reasons) - _SHOWN_REASONS
        if more <= 0:
            return self.reasons
        return (*self.reasons[:_SHOWN_REASONS], (f"... and {more} more reasons", ""))

    @property
    def contents(self) -> str:
        """The operators of all of them, in words."""
        return self.content if self.count == 1 else f"{self.count} x ({self.content})"

    @property
    def share(self) -> str:
        """The share of the time as text; empty where it was not measured."""
        return "" if self.time_share is None else f"{self.time_share:.1%}"


def other_remarks(remarks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The remarks that islands do not tell: what passes left as it was for other reasons."""
    return [row for row in remarks if row["pass"] not in ABOUT_FLOAT or row["node"] == _WHOLE_MODEL]


def group_remarks(remarks: Sequence[dict[str, Any]]) -> tuple[RemarkGroup, ...]:
    """Remarks that differ only in names, together; the largest groups first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in remarks:
        groups[row["op_type"] or row["pass"], shape_of_reason(row["reason"])].append(row)
    found = [
        RemarkGroup(op_type, same[0]["reason"], same[0]["advice"], _distinct(same))
        for (op_type, _), same in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: -len(group.nodes)))


def group_islands(islands: Sequence[dict[str, Any]]) -> tuple[IslandGroup, ...]:
    """Islands that differ only in names, together: those on purpose last, the slowest first."""
    groups: dict[tuple[object, ...], list[dict[str, Any]]] = defaultdict(list)
    for island in islands:
        reasons = tuple(shape_of_reason(each["reason"]) for each in island["reasons"])
        groups[island["cause"], tuple(island["ops"].items()), reasons].append(island)
    found = [_group(same) for same in groups.values()]
    return tuple(sorted(found, key=_importance))


def extent(islands: Sequence[dict[str, Any]]) -> str:
    """How much there is, in words: ``2 islands, 5 float operators, 12.0% of the run time``."""
    count = sum(each["float_ops"] for each in islands)
    words = [
        f"{len(islands)} island{'' if len(islands) == 1 else 's'}",
        f"{count} float operator{'' if count == 1 else 's'}",
    ]
    shares = [each["time_share"] for each in islands if each["time_share"] is not None]
    if shares:
        words.append(f"{sum(shares):.1%} of the run time")
    return ", ".join(words)


def _importance(group: IslandGroup) -> tuple[bool, float, int]:
    return group.cause == Cause.EDGE.value, -(group.time_share or 0.0), -group.float_ops


def _group(islands: Sequence[dict[str, Any]]) -> IslandGroup:
    first = islands[0]
    shares = [each["time_share"] for each in islands if each["time_share"] is not None]
    return IslandGroup(
        first["cause"],
        _content(first["ops"]),
        len(islands),
        sum(each["float_ops"] for each in islands),
        tuple((_of_op(each), each["advice"]) for each in first["reasons"]),
        tuple(dict.fromkeys(_place(each) for each in islands)),
        sum(shares) if shares else None,
    )


def _content(ops: dict[str, int]) -> str:
    """``2 Mul, Softmax, with 3 DequantizeLinear, QuantizeLinear``."""
    inside = {name: count for name, count in ops.items() if name not in _EDGES}
    edges = {name: count for name, count in ops.items() if name in _EDGES}
    if not inside:
        return _counted(edges)
    return _counted(inside) + (f", with {_counted(edges)}" if edges else "")


def _counted(ops: dict[str, int]) -> str:
    words = [name if count == 1 else f"{count} {name}" for name, count in ops.items()]
    more = sum(list(ops.values())[_SHOWN_OPERATORS:])
    return ", ".join(words[:_SHOWN_OPERATORS]) + (f" and {more} more" if more else "")


def _of_op(reason: dict[str, Any]) -> str:
    """The reason, with the operator it is about and how often, where that is not plain."""
    op_type, nodes = reason["op_type"], reason["nodes"]
    if not op_type or op_type in reason["reason"]:
        return reason["reason"]
    count = f"{len(nodes)} " if len(nodes) > 1 else ""
    return f"{count}{op_type}: {reason['reason']}"


def _place(island: dict[str, Any]) -> str:
    """The first node a reason names, else the first one."""
    return next((node for each in island["reasons"] for node in each["nodes"]), island["nodes"][0])


def _distinct(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row["node"] for row in rows))


def _first_few(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) <= _SHOWN_NODES + 1:
        return tuple(names)
    return (*names[:_SHOWN_NODES], f"... and {len(names) - _SHOWN_NODES} more")
