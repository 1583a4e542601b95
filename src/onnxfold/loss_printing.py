"""Prints what was injected into a model."""

from __future__ import annotations

from typing import Any

from onnxfold.console import print_item, print_table
from onnxfold.runtime.report.losses import loss_lines

_MOST_ROWS = 12
_MANY = ("grad_", "state_", "new_state_")


def print_losses(facts: dict[str, Any]) -> None:
    """Print the section ``loss`` of a report: which tensors, which inputs and outputs."""
    if not facts:
        return
    for line in loss_lines(facts):
        print_item(line, first="", rest=2)
    for role in ("inputs", "outputs"):
        # What there may be hundreds of comes last.
        rows = sorted(facts[role], key=lambda row: row["name"].startswith(_MANY))
        more = f" ({len(rows) - _MOST_ROWS} more in the report)" if len(rows) > _MOST_ROWS else ""
        if not rows:
            continue
        print_table(
            f"{role} that were added{more}",
            ("name", "type", "shape", "holds"),
            (
                (row["name"], row["dtype"], _dims(row["shape"]), row.get("holds", ""))
                for row in rows[:_MOST_ROWS]
            ),
        )


def _dims(shape: list[Any] | None) -> str:
    if shape is None:
        return "?"
    return f"[{','.join('?' if dim is None else str(dim) for dim in shape)}]"
