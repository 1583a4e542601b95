"""upgrade-opset: rewrite a model for a newer version of ai.onnx, in place."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.ir_version import fitting_ir_version
from onnxfold.passes.listener import Step
from onnxfold.passes.opset_adapters import ADAPTERS, BREAKING
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import label, nested_graphs

_OLDEST = 7
"""Before opset 7 broadcasting was an attribute, and ONNX Runtime promises nothing."""
_NEWEST = 21


@dataclass(frozen=True)
class UpgradeOpset(Pass):
    """Raise the ai.onnx opset of the model and its local functions; never lower it.

    Names, metadata and functions stay. Where an operator has no adapter the model is left as it
    is, with a remark on that operator.

    Attributes:
        to: The version to reach, at most 21; models at or above it are left alone.
        strict: Fail where the model cannot be upgraded.
    """

    name: ClassVar[str] = "upgrade-opset"
    contract: ClassVar[Contract] = Contract.EXACT

    to: int = 17
    strict: bool = False

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Check every node, then rewrite one version after the other.

        Raises:
            UsageError: ``to`` is out of range.
            PassError: ``strict``, and an operator cannot be carried over.
        """
        if not _OLDEST <= self.to <= _NEWEST:
            raise UsageError(f"upgrade-opset: to={self.to} is not in {_OLDEST}..{_NEWEST}")
        roots = [model.graph, *(function.graph for function in model.functions.values())]
        old = [root for root in roots if 0 < root.opset_imports.get("", 0) < self.to]
        if not old:
            return
        obstacles = [each for root in old if (each := _obstacle(root, self.to)) is not None]
        if obstacles:
            self._refuse(*obstacles[0], rewriter)
            return
        # One step: half an upgrade is not a model.
        with rewriter.step("upgrade") as step:
            for root in old:
                _upgrade(root, self.to, rewriter, step)
            version = fitting_ir_version(model.ir_version, model.opset_imports)
            rewriter.set_ir_version(version)

    def _refuse(self, node: ir.Node, reason: str, rewriter: Rewriter) -> None:
        if self.strict:
            raise PassError(f"upgrade-opset: {label(node)}: {reason}")
        advice = f"export the model anew, at opset {self.to} or later"
        rewriter.remark(node, f"the opset stays: {reason}", advice)


def _nodes(root: ir.Graph) -> list[ir.Node]:
    graphs = [root, *nested_graphs(root)]
    return [node for graph in graphs for node in graph if not node.domain]


def _obstacle(root: ir.Graph, target: int) -> tuple[ir.Node, str] | None:
    """The first node that cannot be carried over, and why; found before anything is changed."""
    start = root.opset_imports[""]
    for node in _nodes(root):
        if start < _OLDEST:
            return node, f"opset {start} is older than {_OLDEST}"
        if node.op_type not in _known_ops(start):
            return node, f"it is not in opset {start}"
        for version in range(start + 1, target + 1):
            if problem := _problem(node, version):
                return node, f"it cannot be raised to {version}: {problem}"
    return None


def _problem(node: ir.Node, version: int) -> str:
    # Upsample is a Resize from opset 10 on.
    op_type = "Resize" if node.op_type == "Upsample" and version > 10 else node.op_type
    if (node.op_type, version) in BREAKING:
        return "its meaning changed and there is no adapter"
    adapter = ADAPTERS.get((op_type, version))
    return adapter.refuses(node) if adapter is not None else ""


@functools.cache
def _known_ops(opset: int) -> frozenset[str]:
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    return frozenset(name for name in names if onnx.defs.has(name, opset, ""))


def _upgrade(root: ir.Graph, target: int, rewriter: Rewriter, step: Step) -> None:
    for version in range(root.opset_imports[""] + 1, target + 1):
        for node in _nodes(root):
            adapter = ADAPTERS.get((node.op_type, version))
            if adapter is not None:
                step.sources = (node,)
                adapter.adapt(node, rewriter)
    rewriter.set_opset(target, graph=root)
