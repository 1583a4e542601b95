"""Steps, the units in which a model is rewritten, and who hears of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir


@dataclass
class Step:
    """One rewrite: a rule applied at a node.

    Attributes:
        rule: Name of the rule.
        node: The node the rule looks at; None for the whole model.
        sources: The nodes that what the step inserts is derived from.
        applied: Whether anything was mutated.
        counts: Mutations by kind (``inserted``, ``erased``, ``modified``, ...).
    """

    rule: str
    node: ir.Node | None
    sources: tuple[ir.Node, ...] = ()
    applied: bool = False
    counts: Counter[str] = field(default_factory=Counter[str])


class RewriteListener:
    """Hears every mutation. All methods do nothing by default."""

    def permits(self, pass_name: str, step: Step) -> bool:
        """Whether ``step`` may mutate the model; asked once a step, at its first mutation."""
        return True

    def node_inserted(self, node: ir.Node) -> None:
        """``node`` was inserted."""

    def node_erased(self, node: ir.Node, inputs: Sequence[ir.Value]) -> None:
        """``node`` was erased; ``inputs`` are the values it read (nested bodies included)."""

    def node_modified(self, node: ir.Node) -> None:
        """An input or attribute of ``node`` changed."""

    def value_replaced(self, old: ir.Value, new: ir.Value) -> None:
        """All uses of ``old`` now read ``new``, which computes the same real value."""

    def uses_moved(self, nodes: Sequence[ir.Node]) -> None:
        """``nodes`` read another value than before: what replaced the one they read."""

    def step_applied(self, pass_name: str, step: Step) -> None:
        """``step`` mutated the model and is complete."""


class StepRefusedError(Exception):
    """A listener refused the current step; never leaves the rewriter."""
