"""lower-optimizer: ONNX's own optimizers become ordinary operators, which every runtime has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.train.arithmetic import Arithmetic, dtype_of
from onnxfold.passes.train.updates import Adagrad, Adam, Moving, Sgd, Update
from onnxfold.passes.walk import label

_DOMAIN = "ai.onnx.preview.training"
_OLDEST_OPSET = 9


@rule("lower-adam", f"{_DOMAIN}::Adam")
def lower_adam(node: ir.Node, rewriter: Rewriter) -> None:
    """X - R' V' / (sqrt(H') + epsilon), R' = R sqrt(1 - beta^T) / (1 - alpha^T), or R for T = 0."""
    call = _Call(node, rewriter, slots=("mean", "square"))
    if not call.is_readable:
        return
    a = Arithmetic(rewriter, node)
    adam = Adam(call.number("alpha", 0.9), call.number("beta", 0.999), call.number("epsilon", 1e-6))
    plain = a.cast(call.rate, ir.DataType.DOUBLE)
    corrected, _ = adam.corrected(a, plain, call.count)
    started = a.call("Greater", call.count, 0, name="has_started", dtype=ir.DataType.BOOL)
    rate = a.select(started, corrected, plain, name="rate_adjusted")
    shrink = call.number("norm_coefficient_post", 0.0)
    call.replace(a, adam, {"rate": rate}, scale=1 - shrink)


@rule("lower-momentum", f"{_DOMAIN}::Momentum")
def lower_momentum(node: ir.Node, rewriter: Rewriter) -> None:
    """X - R V', or X - R (G + alpha V'), with V' = alpha V + beta G, or alpha V + G for T = 0."""
    call = _Call(node, rewriter, slots=("momentum",))
    if not call.is_readable:
        return
    a = Arithmetic(rewriter, node)
    sgd = Sgd(call.number("alpha"), call.number("beta"), call.text("mode") == "nesterov")
    index = a.call("Add", call.count, 1, name="step") if sgd.share != 1 else call.count
    call.replace(a, sgd, sgd.scalars(a, call.rate, index))


@rule("lower-adagrad", f"{_DOMAIN}::Adagrad")
def lower_adagrad(node: ir.Node, rewriter: Rewriter) -> None:
    """X - R / (1 + T decay_factor) G / (sqrt(H') + epsilon), with H' = H + G^2."""
    call = _Call(node, rewriter, slots=("sum",))
    if not call.is_readable:
        return
    a = Arithmetic(rewriter, node)
    adagrad = Adagrad(call.number("epsilon", 1e-6), call.number("decay_factor", 0.0))
    index = a.call("Add", call.count, 1, name="step") if adagrad.rate_decay else call.count
    call.replace(a, adagrad, adagrad.scalars(a, call.rate, index))


@dataclass(frozen=True)
class LowerOptimizer(PatternPass):
    """Lower ``ai.onnx.preview.training`` Adam, Momentum and Adagrad, wherever they occur.

    Each tensor that such a node updates gets its own ordinary operators. Numbers follow the
    operators' specification: counts start from 0, and the learning rate is used as it is there.
    """

    name: ClassVar[str] = "lower-optimizer"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """One rule an optimizer."""
        return (lower_adam, lower_momentum, lower_adagrad)


class _Call:
    """One optimizer node: its attributes, and its tensors group by group.

    Attributes:
        rate: The learning rate.
        count: The updates done before, int64.
        is_readable: Whether it can be lowered here.
    """

    def __init__(self, node: ir.Node, rewriter: Rewriter, slots: Sequence[str]) -> None:
        self._node = node
        self._rewriter = rewriter
        self._slots = tuple(slots)
        self.is_readable = not any(each.is_ref() for each in node.attributes.values())
        if not self.is_readable:
            reason = "its attributes are those of the local function that it lies in"
            rewriter.remark(node, reason, "run inline-functions first")
            return
        opset = rewriter.opset(node)
        if 0 < opset < _OLDEST_OPSET:
            raise UsageError(
                f"{label(node)} needs opset {_OLDEST_OPSET} or later to be lowered, the model has "
                f"{opset}: run upgrade-opset first"
            )
        groups = 2 + len(slots)
        operands = node.inputs[2:]
        tensors = len(operands) // groups
        if not tensors or len(operands) % groups or len(node.outputs) != tensors * (groups - 1):
            raise InvalidModelError(
                f"{label(node)} has {len(node.inputs)} inputs and {len(node.outputs)} outputs; "
                f"wanted the rate, the count and {groups} inputs and {groups - 1} outputs a tensor"
            )
        self.rate, self.count, *rest = (self._present(value) for value in node.inputs)
        self._groups = [rest[i * tensors : (i + 1) * tensors] for i in range(groups)]

    def number(self, name: str, default: float | None = None) -> float:
        """A float attribute."""
        attribute = self._node.attributes.get(name)
        if attribute is not None:
            return attribute.as_float()
        if default is None:
            raise InvalidModelError(f"{label(self._node)} lacks the attribute {name}")
        # As a parser reads the default of a float attribute: to float32.
        return float(np.float32(default))

    def text(self, name: str) -> str:
        """A string attribute."""
        attribute = self._node.attributes.get(name)
        return "" if attribute is None else attribute.as_string()

    def replace(
        self,
        a: Arithmetic,
        update: Update,
        scalars: Mapping[str, ir.Value],
        scale: float = 1.0,
    ) -> None:
        """Put the update of every tensor in the node's place; new values times ``scale``."""
        decay = self.number("norm_coefficient", 0.0)
        moved: list[list[ir.Value]] = []
        for value, gradient, *state in zip(*self._groups, strict=True):
            slots = dict(zip(self._slots, state, strict=True))
            tensor = Moving(f"{value.name}", value, gradient, slots, decay)
            dtype = dtype_of([value, gradient, *state])
            here = {key: a.cast(scalar, dtype) for key, scalar in scalars.items()}
            new, new_slots = update.move(a, tensor, here)
            if scale != 1:
                new = a.call("Mul", new, scale, name=f"{value.name}_scaled")
            moved.append([new, *(new_slots[slot] for slot in self._slots)])
        columns = [value for group in zip(*moved, strict=True) for value in group]
        self._rewriter.replace_node(self._node, columns)

    def _present(self, value: ir.Value | None) -> ir.Value:
        if value is None:
            raise InvalidModelError(f"{label(self._node)} lacks an input")
        return value
