"""Counts what passes do and how long they take."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.pipeline import BaseInstrument


@dataclass(frozen=True)
class PassTime:
    """How long one application of a pass took.

    Attributes:
        pass_name: The pass.
        seconds: Wall time. Instruments listed after ``Timing`` are included, those before not.
        nodes: Nodes of the main graph afterwards.
    """

    pass_name: str
    seconds: float
    nodes: int


class Timing(BaseInstrument):
    """Measures each pass. List it last, so that it does not measure the other instruments.

    Attributes:
        rows: One row per application, in order.
    """

    def __init__(self) -> None:
        self.rows: list[PassTime] = []
        self._start = 0.0

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """Stop the clock."""
        seconds = time.perf_counter() - self._start
        self.rows.append(PassTime(pass_.name, seconds, len(model.graph)))


@dataclass(frozen=True)
class RuleCount:
    """How often a rule was applied.

    Attributes:
        pass_name: The pass.
        rule: The rule.
        count: Applications.
    """

    pass_name: str
    rule: str
    count: int


@dataclass
class Statistics(BaseInstrument):
    """Counts rewrites.

    Attributes:
        passes: For each pass, counts of ``inserted``, ``erased``, ``replaced`` and so on.
        rules: For each pass and rule, how often it was applied.
    """

    passes: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    rules: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """Add what ``pass_`` did."""
        self.passes.setdefault(pass_.name, Counter()).update(result.statistics)
        for rule, count in result.rules.items():
            self.rules[pass_.name, rule] += count

    def rows(self) -> list[RuleCount]:
        """The rules in order of first application."""
        return [RuleCount(name, rule, count) for (name, rule), count in self.rules.items()]
