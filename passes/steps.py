"""Opens the steps in which a model is mutated: asks and tells the listeners, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TypeVar

import onnx_ir as ir

from onnxfold.passes.errors import PassError
from onnxfold.passes.listener import RewriteListener, Step, StepRefusedError
from onnxfold.passes.remark import Remark
from onnxfold.passes.walk import label

_Gate = TypeVar("_Gate", bound="StepGate")


class StepGate:
    """What a rewriter knows of its steps, whatever it mutates in them.

    Attributes:
        pass_name: The pass on whose behalf the model is mutated.
        statistics: Counts of ``inserted``, ``erased``, ``modified``, ``replaced`` and so on.
        rules: How often each rule was applied.
        remarks: What the pass had to say.
        refused: Whether a listener refused a step.
    """

    def __init__(self, pass_name: str, listeners: Sequence[RewriteListener] = ()) -> None:
        self.pass_name = pass_name
        self.statistics: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        self.remarks: list[Remark] = []
        self.refused = False
        self._listeners = list(listeners)
        self._step: Step | None = None
        self._last_step: Step | None = None

    @property
    def modified(self) -> bool:
        """Whether any step mutated the model."""
        return self.rules.total() > 0

    def add_listener(self, listener: RewriteListener) -> None:
        """Tell ``listener`` about every mutation from now on."""
        self._listeners.append(listener)

    def remove_listener(self, listener: RewriteListener) -> None:
        """Stop telling ``listener``."""
        self._listeners.remove(listener)

    @contextmanager
    def step(
        self, rule: str, node: ir.Node | None = None, *, sources: Iterable[ir.Node] = ()
    ) -> Generator[Step]:
        """Open the step in which ``rule`` rewrites ``node``.

        Args:
            rule: Name of the rule, counted and shown in statistics and bisection.
            node: The node the rule looks at.
            sources: Further nodes that the inserted ones are derived from.

        Yields:
            The step; after the block, ``applied`` says whether anything was mutated.
        """
        all_sources = ((node,) if node is not None else ()) + tuple(sources)
        step = self._open(rule, node, all_sources)
        try:
            yield step
        except StepRefusedError:
            return
        finally:
            self._step = None
        self._close(step)

    def attempt(
        self: _Gate, rule: str, node: ir.Node, rewrite: Callable[[ir.Node, _Gate], None]
    ) -> bool:
        """Call ``rewrite(node, self)`` in a step of ``rule``, without the cost of a ``with`` block.

        Returns:
            Whether anything was mutated.
        """
        step = self._open(rule, node, (node,))
        try:
            rewrite(node, self)
        except StepRefusedError:
            return False
        finally:
            self._step = None
        self._close(step)
        return step.applied

    def describe_step(self) -> str:
        """The step last opened, for error messages; empty before the first."""
        step = self._last_step
        if step is None:
            return ""
        return f"{step.rule} on {label(step.node)}" if step.node is not None else step.rule

    def add_source(self, *nodes: ir.Node) -> None:
        """Name further nodes that what this step inserts is derived from."""
        if self._step is None:
            raise PassError(f"pass {self.pass_name}: add_source outside a step")
        self._step.sources += nodes

    def remark(self, node: ir.Node, reason: str, advice: str = "") -> None:
        """Say why ``node`` was left as it is."""
        name = node.name or next((o.name for o in node.outputs if o.name), "") or "(unnamed)"
        self.remarks.append(Remark(self.pass_name, name, node.op_type, reason, advice))

    def _open(self, rule: str, node: ir.Node | None, sources: tuple[ir.Node, ...]) -> Step:
        if self._step is not None:
            raise PassError(f"pass {self.pass_name}: steps do not nest ({rule})")
        self._step = self._last_step = step = Step(rule, node, sources)
        return step

    def _close(self, step: Step) -> None:
        if not step.applied:
            return
        self.rules[step.rule] += 1
        self.statistics.update(step.counts)
        for listener in self._listeners:
            listener.step_applied(self.pass_name, step)

    def _mutate(self, kind: str) -> Step:
        step = self._step
        if step is None:
            raise PassError(f"pass {self.pass_name} mutated the model outside a step")
        if not step.applied:
            if not all(listener.permits(self.pass_name, step) for listener in self._listeners):
                self.refused = True
                raise StepRefusedError
            step.applied = True
        step.counts[kind] += 1
        return step
