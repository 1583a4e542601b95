"""What `explain` and the reports show a person: tables of facts, lists of what stays float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxfold.console import print_item, print_line, print_table, shortened
from onnxfold.passes.census import Census
from onnxfold.runtime.explain import Explanation
from onnxfold.runtime.profile import NodeTime
from onnxfold.runtime.report.groups import IslandGroup, extent, group_islands, group_remarks

_MAX_ROWS = 20
_MAX_LAYERS = 3


def print_explanation(explanation: Explanation) -> None:
    """What the model is made of and what a fold makes of it, costs, islands."""
    document = explanation.to_json()
    _print_models(explanation)
    _print_portability(document)
    _print_operators(explanation)
    _print_costs(explanation.costs)
    print_islands(document["islands"])


def print_islands(islands: list[dict[str, Any]]) -> None:
    """Islands (as in a report), grouped.

    Lists, not tables: names of nodes and tensors are often as wide as a terminal.
    """
    groups = group_islands(islands)
    if not groups:
        return
    print_line(f"left in float: {extent(islands)}")
    for group in groups[:_MAX_ROWS]:
        _print_island(group)
    _print_more(len(groups))


def print_remarks(remarks: list[dict[str, Any]]) -> None:
    """What passes say beyond islands (as in a report), grouped."""
    groups = group_remarks(remarks)
    if not groups:
        return
    print_line(f"remarks of passes: {len(remarks)}")
    for group in groups[:_MAX_ROWS]:
        advice = f" ({group.advice})" if group.advice else ""
        print_item(f"{group.op_type}: {group.reason}{advice}", first="  ", rest=4)
        print_item(f"at {', '.join(group.shown_nodes())}", first="    ", rest=7)
    _print_more(len(groups))


def _print_models(explanation: Explanation) -> None:
    censuses = [each for each in (explanation.census, explanation.folded) if each]
    times = [explanation.microseconds, explanation.folded_microseconds]
    kinds = dict.fromkeys(kind for each in censuses for kind in each.kinds)
    types = dict.fromkeys(name for each in censuses for name in each.parameters_by_type)
    rows: list[tuple[object, ...]] = [
        ("nodes", *(sum(each.ops.values()) for each in censuses)),
        *((f"  {kind}", *(each.kinds.get(kind, 0) for each in censuses)) for kind in kinds),
        ("multiply-accumulates", *(f"{each.macs:,}" for each in censuses)),
        ("  on integers", *(f"{each.integer_share:.1%}" for each in censuses)),
        ("  between Q and DQ, in float", *(f"{each.qdq_share:.1%}" for each in censuses)),
        *_unknown(censuses),
        ("parameters", *(f"{each.parameters:,}" for each in censuses)),
        *(
            (f"  bytes of {name}", *(_bytes_of(name, each.parameters_by_type) for each in censuses))
            for name in types
        ),
        ("microseconds in nodes", *(f"{time:,.0f}" for time in times if time is not None)),
    ]
    folded = [f"folded ({explanation.target})"] if explanation.folded else []
    title = f"the model is {explanation.kind.value}"
    print_table(title, ("", "as it came", *folded), rows, numbers=(1, 2))


def _unknown(censuses: Sequence[Census]) -> list[tuple[object, ...]]:
    """How many operators were not counted, where there are any."""
    unknown = [each.unknown_macs for each in censuses]
    return [("  operators of unknown shape, left out", *unknown)] if any(unknown) else []


def _print_portability(document: dict[str, Any]) -> None:
    """Whether x86 machines without VNNI, whose int16 sums saturate, compute the same."""
    layers = document["saturating"]
    if not document["target"]:
        return
    if not layers:
        print_line("portable to x86 without VNNI: yes, no u8 x s8 product can saturate\n")
        return
    shown = [
        f"{each['channels']} of {each['of']} channels of '{each['node']}'"
        for each in layers[:_MAX_LAYERS]
    ]
    more = len(layers) - len(shown)
    shown += [f"and {more} more"] if more > 0 else []
    count = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    print_item(
        f"portable to x86 without VNNI: no, {count} can saturate ({', '.join(shown)}): "
        "--reduce-range gives them 7-bit weights and uint8 operands, or "
        "session.x64quantprecision=1 there is exact and slower",
        first="",
        rest=2,
    )
    print_line("")


def _bytes_of(name: str, parameters: dict[str, dict[str, int]]) -> str:
    return f"{parameters[name]['bytes']:,}" if name in parameters else "0"


def _print_operators(explanation: Explanation) -> None:
    censuses = [each.ops for each in (explanation.census, explanation.folded) if each]
    names = list(dict.fromkeys(name for each in reversed(censuses) for name in each))
    rows: list[tuple[object, ...]] = [
        (name, *(each.get(name, 0) for each in censuses)) for name in names[:_MAX_ROWS]
    ]
    folded = [f"folded ({explanation.target})"] if explanation.folded else []
    header = ("operator", "as it came", *folded)
    if len(names) > _MAX_ROWS:
        rows.append((f"... and {len(names) - _MAX_ROWS} more", *[""] * len(censuses)))
    print_table("operators", header, rows, numbers=(1, 2))


def _print_costs(costs: Sequence[NodeTime]) -> None:
    total = sum(cost.total for cost in costs) or 1.0
    shown = costs[:_MAX_ROWS]
    print_table(
        f"where the time goes ({len(shown)} of {len(costs)} nodes that ONNX Runtime executes)",
        ("operator", "microseconds", "share", "does the work of"),
        (
            (cost.op_type, f"{cost.total:.1f}", f"{cost.total / total:.1%}", _work_of(cost))
            for cost in shown
        ),
        numbers=(1, 2),
    )


def _work_of(cost: NodeTime) -> str:
    first, *others = cost.covers or (cost.node,)
    return shortened(f"{first} and {len(others)} more" if others else first)


def _print_island(group: IslandGroup) -> None:
    share = f"{group.share or '-':>6}  "
    print_item(f"{share}{group.cause}: {group.contents}", first="  ", rest=10)
    for reason, advice in group.shown_reasons():
        print_item(f"{reason}{f' ({advice})' if advice else ''}", first=" " * 10, rest=12)
    print_item(f"at {', '.join(group.shown_places())}", first=" " * 10, rest=13)


def _print_more(count: int) -> None:
    if count > _MAX_ROWS:
        print_line(f"  ... and {count - _MAX_ROWS} more reasons: --json has all")
    print_line("")
