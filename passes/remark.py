"""What a pass could have done and did not."""

from __future__ import annotations

from dataclasses import dataclass

_MEASURED = "(measured"
"""How reasons that come from a measurement end."""


@dataclass(frozen=True)
class Remark:
    """Something a pass could have done and did not, in words a user can act on.

    Attributes:
        pass_name: The pass that speaks.
        node: Name of the node (or of its first output where the node has no name).
        op_type: The node's operator.
        reason: Why the rewrite did not happen.
        advice: What would make it happen; empty where nothing would.
    """

    pass_name: str
    node: str
    op_type: str
    reason: str
    advice: str = ""

    @property
    def measured(self) -> bool:
        """Whether it was a measurement that decided: the reason says so."""
        return _MEASURED in self.reason
