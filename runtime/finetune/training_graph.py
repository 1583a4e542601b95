"""A quantized model as a function of its parameters: the error of its outputs, and the gradient."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.add_gradient import AddGradient
from onnxfold.passes.grad.lower_gradient import LowerGradient
from onnxfold.passes.loss.record import TOTAL
from onnxfold.passes.loss.tail import behind
from onnxfold.passes.provenance import node_name
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.finetune.parameters import Parameters
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.specs import Feed

PREPARE = (
    "inline-functions{which=all},upgrade-opset{to=21},infer-shapes,fold-constants{only-integers},"
    "infer-shapes"
)
"""What gradients need: no calls, and ranks that no arithmetic on shapes hides."""
_CONFIG = replace(DEPLOYMENT, name="fine-tuning")
_TARGET = "target_"


@dataclass(frozen=True)
class Matched:
    """A tensor of the quantized model that is to be near to one of the float model.

    Attributes:
        quantized: Its name.
        original: The name of the float model's.
        target: What the input is called that it is fed by.
        weight: What its mean squared error counts with.
    """

    quantized: str
    original: str
    target: str
    weight: float = 1.0


class TrainingGraph:
    """A model whose parameters are fed, and which gives a loss and its gradient by them."""

    def __init__(self, model: ir.Model, parameters: Parameters) -> None:
        """Differentiate.

        Args:
            model: Prepared, with the output ``loss``; changed.
            parameters: What is fed.

        Raises:
            UsageError: An operator on the way has no gradient.
        """
        rewriter = Rewriter(model, "tune")
        with rewriter.step("tune"):
            names = _feed(model, parameters, rewriter)
        only_loss(model)
        self._loss = Session(model.clone(), _CONFIG)
        AddGradient(of=TOTAL, wrt=tuple(map(re.escape, names))).run(model)
        LowerGradient().run(model)
        self._gradient = Session(model, _CONFIG)
        self._names = {f"grad_{name}": name for name in names}

    def loss(self, feed: Mapping[str, Array]) -> float:
        """The loss on one feed, which holds the parameters too."""
        return float(self._loss.run(_of(self._loss, feed))[TOTAL])

    def gradient(self, feed: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """The loss, and its gradient by each parameter."""
        found = self._gradient.run(_of(self._gradient, feed))
        return float(found[TOTAL]), {name: found[key] for key, name in self._names.items()}


def matched_outputs(quantized: ir.Model, original: ir.Model) -> list[Matched]:
    """The real outputs of both models, one after the other; scores where a softmax follows.

    Raises:
        UsageError: They have no real output in common.
    """
    pairs = zip(quantized.graph.outputs, original.graph.outputs, strict=False)
    found: list[Matched] = []
    for new, old in pairs:
        opset = quantized.graph.opset_imports.get("", 21)
        value, wanted = (behind(each, "logits", opset).value for each in (new, old))
        if value.dtype == ir.DataType.FLOAT == wanted.dtype and value.producer() is not None:
            target = f"{_TARGET}{len(found)}"
            found.append(Matched(value.name or "", wanted.name or "", target))
    if not found:
        raise UsageError("the models have no output of float32 in common to compare")
    return found


def relative(matched: Matched, samples: Iterable[Feed], count: int) -> Matched:
    """``matched``, its error in proportion to its power on ``samples``, for one of ``count``."""
    powers = [float(np.mean(np.square(each[matched.target], dtype=np.float64))) for each in samples]
    power = float(np.mean(powers))
    return replace(matched, weight=1 / (power * count) if power > 0 else 1.0)


def only_loss(model: ir.Model) -> None:
    """Take away all outputs but the loss, and what only they need."""
    kept = [value for value in model.graph.outputs if value.name == TOTAL]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    for each in parse_passes("remove-dead-code,infer-shapes"):
        each.run(model)


def add_error(model: ir.Model, matched: Sequence[Matched]) -> None:
    """Add the output ``loss``: the weighted sum of mean squared errors.

    Args:
        model: Changed.
        matched: What is compared; each has an input ``target``.
    """
    rewriter = Rewriter(model, "tune")
    with rewriter.step("tune"):
        _add_error(model, matched, rewriter)


def _feed(model: ir.Model, parameters: Parameters, rewriter: Rewriter) -> tuple[str, ...]:
    """Let the model read parameters from new inputs, and return the names of those."""
    graph = model.graph
    named = {value.name: value for node in graph for value in node.outputs}
    named |= dict(graph.initializers)
    nodes = {node_name(node): node for node in graph}
    given: dict[str, ir.Value] = {}
    for name, wanted in parameters.values.items():
        old = named[name]
        given[wanted] = rewriter.add_input(wanted, ir.DataType.FLOAT, old.shape)
        rewriter.replace_value(old, given[wanted])
    for (name, index), wanted in parameters.places.items():
        if wanted not in given:
            old = nodes[name].inputs[index]
            shape = None if old is None else old.shape
            given[wanted] = rewriter.add_input(wanted, ir.DataType.FLOAT, shape)
        rewriter.set_input(nodes[name], index, given[wanted])
    return tuple(given)


def _add_error(model: ir.Model, matched: Sequence[Matched], rewriter: Rewriter) -> None:
    graph = model.graph
    named = {value.name: value for node in graph for value in node.outputs}
    anchor, terms = graph[-1], list[ir.Value]()

    def insert(op_type: str, inputs: list[ir.Value], name: str, *, scalar: bool = True) -> ir.Value:
        nonlocal anchor
        first = inputs[0]
        result = rewriter.insert(
            anchor,
            op_type,
            inputs,
            name=name,
            attributes={"keepdims": 0} if op_type == "ReduceMean" else {},
            dtype=first.dtype,
            shape=() if scalar else first.shape,
            after=True,
        )
        anchor = result.producer() or anchor
        return result

    for each in matched:
        value = named[each.quantized]
        assert value.dtype is not None
        target = rewriter.add_input(each.target, value.dtype, value.shape)
        error = insert("Sub", [value, target], "tuning_error", scalar=False)
        square = insert("Mul", [error, error], "tuning_square", scalar=False)
        mean = insert("ReduceMean", [square], "tuning_mean")
        weight = rewriter.constant(anchor, value.dtype.numpy().type(each.weight), name="share")
        terms.append(insert("Mul", [mean, weight], "tuning_term"))
    total = insert("Sum", terms, "tuning_total")
    rewriter.add_output(total, TOTAL)


def _of(session: Session, feed: Mapping[str, Array]) -> dict[str, Array]:
    return {each.name: feed[each.name] for each in session.inputs}
