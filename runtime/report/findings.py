"""What a comparison found wrong, each with the output or loss that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REST = "structure"
"""What findings are about that name no output or loss."""


@dataclass(frozen=True)
class Finding:
    """One reason why two models do not count as equivalent.

    Attributes:
        about: ``output NAME``, ``loss NAME`` or ``structure``.
        text: The reason.
        conclusive: Whether the contract is broken; else it could not be decided.
    """

    about: str
    text: str
    conclusive: bool


def findings(comparison: dict[str, Any]) -> list[Finding]:
    """The reasons of a comparison (as ``Comparison.to_json`` gives it), losses' own included."""
    outputs = [each["name"] for each in comparison["deployment"]]
    lost = [
        Finding(f"loss {each['loss']}", reason, each["verdict"]["status"] == "failed")
        for each in comparison["losses"]
        for reason in each["verdict"]["reasons"]
    ]
    told = {each.text for each in lost}
    verdict = comparison["verdict"]
    conclusive = verdict["status"] == "failed"
    general = [
        Finding(_about(reason, outputs), reason, conclusive)
        for reason in verdict["reasons"]
        if reason not in told
    ]
    return [*general, *lost]


def _about(reason: str, outputs: list[str]) -> str:
    return next((f"output {name}" for name in outputs if f"'{name}'" in reason), REST)
