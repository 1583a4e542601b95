"""What a comparison of two models says to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxfold.runtime.report.blocks import Block, Bullets, Heading, Paragraph, Table
from onnxfold.runtime.report.content import equivalence_blocks
from onnxfold.runtime.report.summary import excuses_in_words


def comparison_blocks(comparison: dict[str, Any]) -> list[Block]:
    """The page of a comparison (as ``Comparison.to_json`` gives it)."""
    verdict = comparison["verdict"]
    models = f"{comparison['candidate']} against {comparison['reference']}"
    reasons = tuple(verdict["reasons"])
    return [
        Heading(f"onnxfold verify: {verdict['status']}", 1),
        Paragraph(f"{models}, contract {comparison['contract']}."),
        *([Bullets(reasons)] if reasons else []),
        *map(Paragraph, excuses_in_words(comparison)),
        *equivalence_blocks(comparison),
        *_losses(comparison["losses"]),
        *_worst_input(comparison["worst_input"]),
    ]


def worst_input_in_words(worst: Mapping[str, Any]) -> str:
    """What a search for the worst input found (``Comparison.worst_input``), in words."""
    how = f"{worst['steps']} steps along the gradient"
    if worst["reason"]:
        reason = str(worst["reason"]).partition(";")[0]
        how = f"{worst['steps']} random steps, since there is {reason}"
    kept = f" Kept as {worst['kept']}." if worst["kept"] else ""
    return (
        f"worst input: output '{worst['output']}' is off by {worst['difference']:.3g} of its root "
        f"mean square; on the data by {worst['typical']:.3g}, at most {worst['before']:.3g} "
        f"({how}).{kept}"
    )


def _worst_input(worst: Mapping[str, Any] | None) -> Iterator[Block]:
    if worst is not None:
        yield Heading("Worst input")
        yield Paragraph(worst_input_in_words(worst))


def _losses(losses: list[dict[str, Any]]) -> Iterator[Block]:
    if not losses:
        return
    header = ("loss", "better", "reference", "candidate", "difference", "interval", "verdict")
    rows = [
        (
            each["loss"],
            each["better"],
            f"{each['reference']:.6g}",
            f"{each['candidate']:.6g}",
            f"{each['difference']:+.4g}",
            f"{each['low']:+.4g} to {each['high']:+.4g}",
            each["verdict"]["status"],
        )
        for each in losses
    ]
    first = losses[0]
    yield Heading("Losses")
    yield Paragraph(
        f"{first['samples']} samples; {first['confidence']:.0%} intervals: {first['method']}."
    )
    yield Table.of(header, rows)
