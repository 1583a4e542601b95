"""add-optimizer: a model with gradients becomes a graph that trains itself, a step a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.train.manifest import KEY
from onnxfold.passes.train.trainable import choose_trainable
from onnxfold.passes.train.training_step import StepOptions, add_step
from onnxfold.passes.train.updates import Adagrad, Adam, Sgd, Update
from onnxfold.passes.walk import all_nodes, label

Kind = Literal["sgd", "momentum", "adam", "adamw", "adagrad"]

_OPTIONS: Mapping[str, frozenset[str]] = {
    "sgd": frozenset(),
    "momentum": frozenset({"momentum", "dampening", "nesterov"}),
    "adam": frozenset({"beta1", "beta2", "epsilon", "amsgrad"}),
    "adamw": frozenset({"beta1", "beta2", "epsilon", "amsgrad"}),
    "adagrad": frozenset({"epsilon", "rate_decay", "initial_sum"}),
}
"""The options that only some kinds have."""
_FROZEN: Mapping[str, str] = {
    "BatchNormalization": "its mean and variance stay; its scale and shift are trained if chosen",
    "Dropout": "to drop at random, train before exporting",
}
"""Operators that training frameworks treat otherwise, with advice."""
_OLDEST_OPSET = 13


@dataclass(frozen=True)
class AddOptimizer(Pass):
    """Add one step of an optimizer to a model with gradients, with torch's definitions.

    Every trained tensor becomes an input ``state_<tensor>``, whose default is its value so far,
    and gets an output ``new_state_<tensor>``; what the optimizer keeps of it besides, the count of
    steps (``state_step``) and the ``learning_rate`` likewise. Feed each step the state that the
    one before gave, or let ``onnxfold.runtime.training.Trainer`` do so. Dropout and
    BatchNormalization stay what they are in the model: in an exported one they are frozen.

    Attributes:
        kind: sgd, momentum, adam, adamw or adagrad.
        loss: The output that is to fall, of which the gradients are.
        learning_rate: The default of the input of that name.
        trainable: Names of the weights to train, or regular expressions that match whole names;
            all with a gradient where there are none.
        clip_norm: Gradients whose norm, over all tensors, exceeds this are scaled down to it.
        weight_decay: Of each weight, added to its gradient; adamw shrinks the weight instead.
        no_decay: Names or regular expressions of weights without decay.
        momentum: How much of the velocity is kept (momentum; 0.9).
        dampening: By how much the gradient counts less after the first step (momentum; 0).
        nesterov: Whether to look ahead (momentum).
        beta1: How much of the mean gradient is kept (adam, adamw; 0.9).
        beta2: How much of the mean squared gradient is kept (adam, adamw; 0.999).
        epsilon: Added to the root that is divided by (adam, adamw; 1e-8; adagrad; 1e-10).
        amsgrad: Whether to divide by the largest mean square so far (adam, adamw).
        rate_decay: How fast the learning rate falls (adagrad; 0).
        initial_sum: What the sum of squares starts from (adagrad; 0).
    """

    name: ClassVar[str] = "add-optimizer"
    contract: ClassVar[Contract] = Contract.ADDITIVE

    kind: Kind = "adam"
    loss: str = "loss"
    learning_rate: float = 1e-3
    trainable: tuple[str, ...] = ()
    clip_norm: float | None = None
    weight_decay: float | None = None
    no_decay: tuple[str, ...] = ()
    momentum: float | None = None
    dampening: float | None = None
    nesterov: bool = False
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    amsgrad: bool = False
    rate_decay: float | None = None
    initial_sum: float | None = None

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Add the step behind everything else.

        Raises:
            UsageError: An option is not of this kind or out of range, the model has no loss or no
                gradients, or a weight that was named cannot be trained.
        """
        update = self._update()
        _check_model(model, self.loss)
        tensors = choose_trainable(model, self.trainable, self._decay, self.no_decay)
        options = StepOptions(self.kind, self.loss, self.learning_rate, self.clip_norm)
        with rewriter.step("add-optimizer"):
            add_step(rewriter, update, tensors, options)
        for node in all_nodes(model):
            if node.op_type in _FROZEN and not node.domain:
                reason = "training leaves it frozen: it computes what it does in the model"
                rewriter.remark(node, reason, _FROZEN[node.op_type])

    @property
    def _decay(self) -> float:
        default = 0.01 if self.kind == "adamw" else 0.0
        return default if self.weight_decay is None else self.weight_decay

    def _update(self) -> Update:
        self._check_options()
        beta1, beta2 = _or(self.beta1, 0.9), _or(self.beta2, 0.999)
        match self.kind:
            case "sgd":
                return Sgd()
            case "momentum":
                share = 1 - _or(self.dampening, 0.0)
                return Sgd(_or(self.momentum, 0.9), share, self.nesterov)
            case "adagrad":
                epsilon = _or(self.epsilon, 1e-10)
                return Adagrad(epsilon, _or(self.rate_decay, 0.0), _or(self.initial_sum, 0.0))
            case _:
                decoupled = self._decay if self.kind == "adamw" else 0.0
                epsilon = _or(self.epsilon, 1e-8)
                return Adam(beta1, beta2, epsilon, decoupled, self.amsgrad)

    def _check_options(self) -> None:
        for name in sorted(frozenset[str]().union(*_OPTIONS.values()) - _OPTIONS[self.kind]):
            if getattr(self, name) not in (None, False):
                kinds = " or ".join(kind for kind, names in _OPTIONS.items() if name in names)
                option = name.replace("_", "-")
                raise UsageError(
                    f"add-optimizer: {option} is an option of {kinds}, not {self.kind}"
                )
        for name in ("momentum", "dampening", "beta1", "beta2"):
            number: float | None = getattr(self, name)
            if number is not None and not 0 <= number < 1:
                raise UsageError(f"add-optimizer: {name} has to be in [0, 1), got {number}")
        for name in ("weight_decay", "epsilon", "rate_decay", "initial_sum", "learning_rate"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < float("inf"):
                option = name.replace("_", "-")
                raise UsageError(f"add-optimizer: {option} has to be 0 or more, got {number}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"add-optimizer: clip-norm has to be positive, got {self.clip_norm}")
        if self.nesterov and (self.dampening or self.momentum == 0):
            raise UsageError("add-optimizer: nesterov wants a momentum and no dampening")


def _check_model(model: ir.Model, loss: str) -> None:
    title = f"model '{model.graph.name or ''}'"
    if KEY in model.metadata_props:
        raise UsageError(f"{title} has an optimizer already; strip-training takes it out")
    outputs = [value.name or "" for value in model.graph.outputs]
    if loss not in outputs:
        hint = did_you_mean(loss, outputs) or "; inject-loss adds one"
        raise UsageError(f"{title} has no output '{loss}'{hint}")
    opset = model.graph.opset_imports.get("", _OLDEST_OPSET)
    if opset < _OLDEST_OPSET:
        raise UsageError(
            f"{title} is of opset {opset}, an optimizer needs {_OLDEST_OPSET}: run upgrade-opset"
        )
    for node in all_nodes(model):
        if node.domain == "ai.onnx.preview.training" and node.op_type == "Gradient":
            raise UsageError(f"{label(node)} is to be lowered first: run lower-gradient")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
