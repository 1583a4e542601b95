"""Rule tables and the worklist driver that applies them until nothing changes.

A rule looks at one node and either returns without touching anything or rewrites through the
rewriter. Tables are tuples and compose with ``+``::

    @rule("merge-transposes", "Transpose")
    def merge_transposes(node: ir.Node, rewriter: Rewriter) -> None: ...

    RULES = (merge_transposes, drop_identity_transpose)
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.base import Pass
from onnxfold.passes.errors import NonConvergenceError, UsageError
from onnxfold.passes.listener import RewriteListener, Step
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import all_nodes, label, use_count

MAX_REWRITES_PER_NODE = 100
"""How often one rule may rewrite one node and its descendants without removing any node."""


@dataclass(frozen=True)
class Rule:
    """A named rewrite of one node.

    Attributes:
        name: Kebab-case name; counted, and used to switch the rule off.
        op_types: The operators it looks at (``domain::Op`` outside ai.onnx); empty means all.
        rewrite: Looks at the node; returns, or rewrites it through the rewriter.
    """

    name: str
    op_types: tuple[str, ...]
    rewrite: Callable[[ir.Node, Rewriter], None]


RuleTable = tuple[Rule, ...]


def rule(name: str, *op_types: str) -> Callable[[Callable[[ir.Node, Rewriter], None]], Rule]:
    """Make a function a rule called ``name`` for the given operators."""

    def make(function: Callable[[ir.Node, Rewriter], None]) -> Rule:
        return Rule(name, op_types, function)

    return make


@dataclass(frozen=True)
class PatternPass(Pass):
    """A pass that is a rule table, applied until nothing changes.

    Attributes:
        disable: Names of rules to leave out.
    """

    disable: tuple[str, ...] = ()

    def rules(self) -> RuleTable:
        """The table; subclasses return theirs."""
        raise NotImplementedError

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Apply the enabled rules until nothing changes."""
        apply_rules(rewriter, self.rules(), disabled=self.disable)


def apply_rules(
    rewriter: Rewriter,
    rules: Sequence[Rule],
    *,
    disabled: Collection[str] = (),
    nodes: Iterable[ir.Node] | None = None,
) -> None:
    """Apply ``rules`` to every node of every graph, and to what they make, until nothing changes.

    Args:
        rewriter: The gate.
        rules: Tried in order; the first that rewrites a node wins, and the node is looked at again.
        disabled: Names of rules to leave out.
        nodes: Where to start; all nodes by default.

    Raises:
        UsageError: ``disabled`` names a rule that is not in the table.
        NonConvergenceError: Rules keep rewriting each other's results.
    """
    known = [each.name for each in rules]
    for name in disabled:
        if name not in known:
            raise UsageError(f"no rule '{name}'{did_you_mean(name, known)}")
    table = _DispatchTable([each for each in rules if each.name not in disabled])
    worklist = _Worklist(table, all_nodes(rewriter.model) if nodes is None else nodes)
    termination = _Termination(rewriter.pass_name)
    rewriter.add_listener(worklist)
    rewriter.add_listener(termination)
    try:
        while (node := worklist.pop()) is not None:
            if any(rewriter.attempt(each.name, node, each.rewrite) for each in table.rules(node)):
                worklist.push(node)
    finally:
        rewriter.remove_listener(termination)
        rewriter.remove_listener(worklist)


class _DispatchTable:
    """The rules that look at an operator, in order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        op_types = {key for each in rules for key in each.op_types}
        self._of_all = tuple(each for each in rules if not each.op_types)
        self._by_op_type = {
            key: tuple(each for each in rules if not each.op_types or key in each.op_types)
            for key in op_types
        }

    def rules(self, node: ir.Node) -> tuple[Rule, ...]:
        """The rules that look at ``node``."""
        domain = node.domain
        key = f"{domain}::{node.op_type}" if domain else node.op_type
        return self._by_op_type.get(key, self._of_all)


class _Worklist(RewriteListener):
    """Nodes that rules look at, each at most once at a time, first in, first out."""

    def __init__(self, table: _DispatchTable, nodes: Iterable[ir.Node]) -> None:
        self._table = table
        self._queue = deque(node for node in nodes if table.rules(node))
        self._queued = set(self._queue)

    def push(self, node: ir.Node | None) -> None:
        if node is None or node.graph is None or node in self._queued:
            return
        if self._table.rules(node):
            self._queued.add(node)
            self._queue.append(node)

    def pop(self) -> ir.Node | None:
        while self._queue:
            node = self._queue.popleft()
            self._queued.discard(node)
            if node.graph is not None:
                return node
        return None

    def node_inserted(self, node: ir.Node) -> None:
        self.push(node)

    def node_erased(self, node: ir.Node, inputs: Sequence[ir.Value]) -> None:
        for value in inputs:
            self.push(value.producer())
            # A value left with one consumer may now be fused into it.
            if use_count(value) == 1:
                self.push(next(iter(value.uses())).node)

    def node_modified(self, node: ir.Node) -> None:
        self.push(node)
        for output in node.outputs:
            self._push_consumers(output)

    def uses_moved(self, nodes: Sequence[ir.Node]) -> None:
        for node in nodes:
            self.push(node)

    def _push_consumers(self, value: ir.Value) -> None:
        for usage in value.uses():
            self.push(usage.node)


class _Termination(RewriteListener):
    """Refuses to let rules ping-pong: follows each node through its rewrites."""

    def __init__(self, pass_name: str) -> None:
        self._pass_name = pass_name
        self._root: dict[ir.Node, ir.Node] = {}
        self._inserted: list[ir.Node] = []
        self._counts: Counter[tuple[ir.Node, str]] = Counter()

    def node_inserted(self, node: ir.Node) -> None:
        self._inserted.append(node)

    def step_applied(self, pass_name: str, step: Step) -> None:
        inserted, self._inserted = self._inserted, []
        if step.node is None:
            return
        root = self._root.get(step.node, step.node)
        for node in (step.node, *inserted):
            self._root[node] = root
        # A step that leaves fewer nodes than it found can only be repeated finitely often.
        if step.counts["erased"] > step.counts["inserted"]:
            return
        self._counts[root, step.rule] += 1
        if self._counts[root, step.rule] > MAX_REWRITES_PER_NODE:
            involved = sorted(rule for origin, rule in self._counts if origin == root)
            raise NonConvergenceError(
                f"pass {self._pass_name} does not converge: {', '.join(involved)} keep rewriting "
                f"{label(root)}; disable one of them"
            )
