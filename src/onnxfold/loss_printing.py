"""Prints what was injected into a model, and how two models differ in losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxfold.console import print_item, print_table
from onnxfold.runtime.report.losses import loss_lines
from onnxfold.runtime.verify.loss_comparison import LossDifference

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


def print_loss_differences(losses: Sequence[LossDifference]) -> None:
    """Print how much better or worse a candidate is, loss by loss."""
    if not losses:
        return
    print_table(
        f"in the units of the loss, {losses[0].samples} samples, intervals at "
        f"{losses[0].confidence:.0%}",
        ("loss", "better", "reference", "candidate", "difference", "interval", "verdict"),
        (
            (
                each.loss,
                each.better,
                f"{each.reference:.6g}",
                f"{each.candidate:.6g}",
                f"{each.difference:+.4g}",
                f"{each.low:+.4g} to {each.high:+.4g}",
                each.verdict.status,
            )
            for each in losses
        ),
        numbers=(2, 3, 4),
    )


def _dims(shape: list[Any] | None) -> str:
    if shape is None:
        return "?"
    return f"[{','.join('?' if dim is None else str(dim) for dim in shape)}]"
