"""add-gradient: ask for the gradients of one output, by a Gradient node and new outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.quantized_paths import DEQUANTIZERS, INTEGER_OPS
from onnxfold.passes.grad.trainable import trainable_weights
from onnxfold.passes.loss.record import read_record
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.type_inference import infer_model_types

_DOMAIN = "ai.onnx.preview.training"
_NOTHING = {
    "weights": "the model has no float weights to train: name tensors, or match their names",
    "inputs": "the model has no real inputs to differentiate by",
}


@dataclass(frozen=True)
class AddGradient(Pass):
    """Add the gradients of an output, each as the output ``grad_<tensor>``.

    What is added is one ``ai.onnx.preview.training::Gradient`` node, which ``lower-gradient`` turns
    into ordinary operators.

    Attributes:
        of: The output, or tensor inside, that is differentiated: the sum of its elements.
        wrt: What it is differentiated by: ``weights`` (every trainable weight), ``inputs`` (every
            real input of the model that is not data of a loss), or regular expressions that match
            whole names of tensors.
    """

    name: ClassVar[str] = "add-gradient"
    contract: ClassVar[Contract] = Contract.ADDITIVE

    of: str = "loss"
    wrt: tuple[str, ...] = ("weights",)

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Add the node behind everything else.

        Raises:
            UsageError: There is no such tensor, or nothing to differentiate it by.
        """
        graph = model.graph
        if not set(self.wrt) <= {"weights", "inputs"}:
            infer_model_types(model, rewriter)
        values = {value.name: value for value in _values(graph) if value.name}
        result = values.get(self.of)
        if result is None or result.producer() is None:
            hint = did_you_mean(self.of, [name for name in values if values[name].producer()])
            raise UsageError(f"no tensor '{self.of}' to differentiate{hint}; inject a loss first")
        wanted = self._wanted(model, values.values())
        with rewriter.step("add-gradient", result.producer()):
            node = rewriter.insert_node(
                graph[-1],
                "Gradient",
                wanted,
                name=f"gradient_of_{self.of}",
                attributes={"xs": [value.name or "" for value in wanted], "y": self.of},
                domain=_DOMAIN,
                outputs=len(wanted),
                after=True,
            )
            for value, gradient in zip(wanted, node.outputs, strict=True):
                rewriter.set_type(gradient, value.dtype, value.shape)
                rewriter.add_output(gradient, f"grad_{value.name}")

    def _wanted(self, model: ir.Model, values: Iterable[ir.Value]) -> list[ir.Value]:
        named = list(values)
        found: dict[ir.Value, None] = {}
        for pattern in self.wrt:
            matches = _matches(pattern, model, named)
            if not matches:
                real = [value.name or "" for value in named if _is_real(value)]
                hint = _codes_hint(pattern, named) or did_you_mean(pattern, real)
                problem = _NOTHING.get(pattern, f"no real tensor matches '{pattern}'")
                raise UsageError(f"{problem}{hint}")
            found.update(dict.fromkeys(matches))
        return list(found)


def _codes_hint(pattern: str, values: list[ir.Value]) -> str:
    """What to do about weights that are stored as codes, where those were meant."""
    stored = (v for v in values if v.is_initializer() and _is_read_as_codes(v))
    meant = (v for v in stored if pattern == "weights" or re.fullmatch(pattern, v.name or ""))
    value = next(meant, None)
    if value is None:
        return ""
    return (
        f": '{value.name}' holds integer codes, which cannot be trained; train the float model, "
        "or quantize its float weights inside (QuantizeLinear), or train the scales"
    )


def _is_read_as_codes(value: ir.Value) -> bool:
    """Whether a node reads ``value`` as quantized weights: zero points are integers too."""
    if value.dtype is None or value.dtype.is_floating_point():
        return False
    is_matrix = value.shape is not None and len(value.shape) > 1
    return any(
        (use.node.op_type in DEQUANTIZERS and use.idx == 0)
        or (use.node.op_type in INTEGER_OPS and is_matrix)
        for use in value.uses()
    )


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph for output in node.outputs]
    return list(dict.fromkeys(values))


def _matches(pattern: str, model: ir.Model, values: list[ir.Value]) -> list[ir.Value]:
    if pattern == "weights":
        return trainable_weights(model)
    if pattern == "inputs":
        return _real_inputs(model)
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise UsageError(f"'{pattern}' is no regular expression: {error}") from error
    return [value for value in values if matches(value.name or "") and _is_real(value)]


def _real_inputs(model: ir.Model) -> list[ir.Value]:
    """The real inputs, without the labels and other data of losses, and without weights."""
    record = read_record(model)
    data = () if record is None else tuple(record.data)
    return [
        value
        for value in model.graph.inputs
        if _is_real(value) and value.name not in data and not value.is_initializer()
    ]


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
