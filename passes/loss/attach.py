"""Which tensors of a model a loss is computed from: named ones, or what its output stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.build import LossDescription, LossTensor
from onnxfold.passes.loss.declaration import Scores
from onnxfold.passes.loss.tail import FLOATS, Tail, Wanted, behind
from onnxfold.passes.skeleton import skeleton
from onnxfold.passes.suggest import did_you_mean
from onnxfold.passes.walk import Scopes, all_graphs, label, nested_graphs

_WANTED: dict[Scores, Wanted] = {
    "values": "any",
    "logits": "logits",
    "probabilities": "probabilities",
    "log-probabilities": "any",
}
_NEWEST_INFERRED = 8  # an IR version that every opset loads under, for inference alone


@dataclass(frozen=True)
class Attachment:
    """A tensor that a loss is computed from.

    Attributes:
        value: The tensor, in the main graph.
        tensor: Its name, dtype and shape, as far as they can be inferred.
        output: Name of the output, or of the tensor, that was asked for.
        class_axis: The axis of the softmax behind it; None where none is known.
        is_log: Whether it holds the logarithms of the probabilities that are wanted.
        note: Why it is not what was asked for; empty where it is.
    """

    value: ir.Value
    tensor: LossTensor
    output: str
    class_axis: int | None
    is_log: bool
    note: str


class Attacher:
    """Finds tensors in one model, whose types it infers once; the model is not changed."""

    def __init__(self, model: ir.Model, outputs: Sequence[str]) -> None:
        """Look at ``model``.

        Args:
            model: The model.
            outputs: The names of the outputs that a loss may be about.
        """
        self._model = model
        self._graph = model.graph
        self._outputs = [each for each in model.graph.outputs if each.name in outputs]
        self._opset = model.graph.opset_imports.get("", 0)
        self._typed = _typed(model)
        self._by_name = _values(self._typed.graph)
        self._own = _values(self._graph)

    def attach(self, loss: LossDescription, on: Sequence[str]) -> tuple[Attachment, ...]:
        """The tensors of ``loss``.

        Args:
            loss: What is known of the loss.
            on: Names of outputs or of tensors inside; by default the only output of real numbers,
                or the outputs that are called as the loss calls its tensors.

        Raises:
            UsageError: A name is unknown, lies inside a body or is no tensor of real numbers; or
                no name is given and it is not clear which output is meant.
        """
        names = list(on) or self._default(loss)
        if len(names) != len(loss.tensors):
            wanted = f"{len(loss.tensors)} tensors ({', '.join(loss.tensors)})"
            raise UsageError(f"loss {loss.name} takes {wanted}, {len(names)} are named")
        return tuple(self._attached(name, loss) for name in names)

    def value(self, name: str) -> ir.Value | None:
        """The value ``name`` of the model's main graph, typed as far as types can be inferred."""
        return self._by_name.get(name)

    def _default(self, loss: LossDescription) -> list[str]:
        names = [each.name or "" for each in self._outputs]
        if len(loss.tensors) > 1:
            if set(loss.tensors) <= set(names):
                return list(loss.tensors)
            raise UsageError(
                f"loss {loss.name} takes {len(loss.tensors)} tensors ({', '.join(loss.tensors)}): "
                f"name them with on (--on), in this order (outputs: {_quoted(names)})"
            )
        real = [name for name in names if _is_real(self._by_name.get(name))]
        found = real or [name for name in names if self._hides_real(name)]
        if len(found) == 1:
            return found
        if found:
            raise UsageError(
                f"the model has {len(found)} outputs of real numbers ({_quoted(found)}): "
                f"say which one loss {loss.name} is about with on (--on)"
            )
        raise UsageError(f"the model has no output of real numbers for a loss: {self._advice()}")

    def _hides_real(self, name: str) -> bool:
        value = self._by_name[name]
        return not _is_coded(value) and _is_real(behind(value, "any", self._opset).value)

    def _advice(self) -> str:
        """What to attach a loss to where the outputs are integers."""
        for output in self._outputs:
            value = self._by_name[output.name or ""]
            producer = value.producer()
            source = producer.inputs[0] if producer is not None and producer.inputs else None
            if _is_coded(value) and _is_real(source):
                assert source is not None
                return (
                    f"output '{value.name}' is quantized to {_dtype(value)}; attach it to what is "
                    f"quantized with on={source.name}, and for gradients use the float model"
                )
        listed = ", ".join(f"'{each.name}' {_dtype(each)}" for each in self._outputs)
        return (
            f"{listed}; use the float model, put a DequantizeLinear behind its output, or name a "
            "tensor inside with on (--on)"
        )

    def _attached(self, name: str, loss: LossDescription) -> Attachment:
        named = self._named(name)
        wanted = _WANTED[loss.scores]
        tail = behind(named, wanted, self._opset) if not _is_coded(named) else Tail(named)
        if tail.closed is not None:
            raise UsageError(
                f"loss {loss.name} takes logits, and '{name}' is probabilities of "
                f"{label(tail.closed)}, which shows no logits: take a loss on probabilities, or "
                "the model before it was converted"
            )
        if not _is_real(tail.value):
            raise UsageError(f"loss {loss.name} takes real numbers, {self._not_real(named)}")
        own = self._own[tail.value.name or ""]
        _complete_shape(tail)
        is_log = (
            wanted == "probabilities"
            and tail.squashed is not None
            and tail.squashed.op_type == "LogSoftmax"
        )
        note = "" if tail.value is named else _note(tail, wanted, name)
        return Attachment(own, LossTensor.of(tail.value), name, tail.class_axis, is_log, note)

    def _not_real(self, value: ir.Value) -> str:
        """Why ``value`` takes no loss, and what would."""
        what = f"'{value.name}' is {_dtype(value)}"
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer.inputs else None
        if _is_coded(value) and _is_real(source):
            assert source is not None
            return f"{what}: attach it to what is quantized, on={source.name}"
        if _is_coded(value):
            return (
                f"{what}: attach it to a tensor behind a DequantizeLinear, or use the float model"
            )
        return f"{what}: name the tensor before it was rounded or compared"

    def _named(self, name: str) -> ir.Value:
        value = self._by_name.get(name)
        if value is not None and name:
            return value
        for graph in all_graphs(self._model):
            if graph is not self._graph and name in _values(graph):
                raise UsageError(
                    f"'{name}' lies inside {self._place(graph)}: a loss is about a value of the "
                    "main graph; make it an output there first"
                )
        outputs = [each.name or "" for each in self._outputs]
        hint = did_you_mean(name, outputs) or did_you_mean(name, self._by_name)
        raise UsageError(
            f"the model has no output and no tensor '{name}'{hint or f' ({_quoted(outputs)})'}"
        )

    def _place(self, graph: ir.Graph) -> str:
        for function in self._model.functions.values():
            if graph is function.graph or graph in nested_graphs(function.graph):
                return f"the local function {function.domain}.{function.name}"
        holder = Scopes(self._model).holder(graph)
        return "a body" if holder is None else f"a body of {label(holder)}"


def _complete_shape(tail: Tail) -> None:
    """Give the tensor, of a copy of the model, the shape that what reads or makes it shows."""
    value, producer = tail.value, tail.value.producer()
    if value.shape is not None:
        return
    if tail.squashed is not None and value in tail.squashed.inputs:
        value.shape = tail.squashed.outputs[0].shape
    if value.shape is None and producer is not None and producer.op_type == "Flatten":
        value.shape = ir.Shape([None, None])


def _note(tail: Tail, wanted: Wanted, name: str) -> str:
    skipped = ", ".join(label(node) for node in tail.skipped)
    kind = {"logits": "the logits", "probabilities": "the probabilities", "any": "the numbers"}
    if tail.squashed is None and wanted != "any":
        return f"what {skipped} of '{name}' reads"
    return f"{kind[wanted]} before {skipped} of '{name}'"


def _typed(model: ir.Model) -> ir.Model:
    """A copy of the structure of ``model`` with every type that can be inferred."""
    bare = skeleton(model)
    bare.ir_version = max(bare.ir_version, _NEWEST_INFERRED)
    try:
        return ir.from_proto(onnx.shape_inference.infer_shapes(bare, data_prop=True))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return model


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """The named values of ``graph`` itself, whose bodies are not looked into."""
    computed: Iterable[ir.Value] = (value for node in graph for value in node.outputs)
    found = (*graph.inputs, *graph.initializers.values(), *computed)
    return {value.name: value for value in found if value.name}


def _is_real(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype in FLOATS


def _is_coded(value: ir.Value) -> bool:
    """Whether it holds the codes of real numbers."""
    producer = value.producer()
    if producer is None or _is_real(value) or value.dtype is None:
        return False
    return producer.op_type == "QuantizeLinear" or producer.op_type.startswith("QLinear")


def _dtype(value: ir.Value) -> str:
    return str(value.type) if value.dtype is None else value.dtype.name.lower()


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
