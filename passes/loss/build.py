"""A loss as a small model of its own, ready to be spliced into the model that it judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.ir_version import fitting_ir_version
from onnxfold.passes.loss.declaration import Better, Loss, Scores
from onnxfold.passes.loss.graph import Dims, LossGraph, Variable
from onnxfold.passes.loss.registry import opened_loss
from onnxfold.passes.spec import PassSpec, build, parse_pipeline, print_with_options

OUTPUT = "loss"
"""What the output of a loss model is called."""

DEFAULT_OPSET = 18

_COMPUTED_IN = {
    ir.DataType.FLOAT16: ir.DataType.FLOAT,
    ir.DataType.BFLOAT16: ir.DataType.FLOAT,
    ir.DataType.FLOAT: ir.DataType.FLOAT,
    ir.DataType.DOUBLE: ir.DataType.DOUBLE,
}


@dataclass(frozen=True)
class LossTensor:
    """A tensor of the model that a loss takes.

    Attributes:
        name: Its name in the model, for messages.
        dtype: Its dtype.
        shape: Its dims; names for dynamic ones, None for unknown ones.
    """

    name: str
    dtype: ir.DataType
    shape: Dims

    @classmethod
    def of(cls, value: ir.Value) -> LossTensor:
        """What is known of ``value``.

        Raises:
            UsageError: Its dtype or its rank is not known.
        """
        if value.dtype is None or value.shape is None:
            what = "element type" if value.dtype is None else "rank"
            raise UsageError(f"the {what} of '{value.name}' is unknown; run infer-shapes first")
        dims = (each if isinstance(each, int) else each.value for each in value.shape)
        return cls(str(value.name), value.dtype, tuple(dims))


@dataclass(frozen=True)
class LossModel:
    """A loss as a model.

    Attributes:
        text: The loss with its options, as it was asked for.
        name: The loss's kebab-case name.
        model: Inputs: ``tensors``, then ``data``; output: ``loss``. Standard operators only.
        tensors: What the loss takes from the model; the first inputs of ``model``.
        data: New inputs, such as labels; the other inputs of ``model``.
        better: Whether lower or higher values are better.
        scores: What it takes the tensors for.
    """

    text: str
    name: str
    model: ir.Model
    tensors: tuple[str, ...]
    data: tuple[str, ...]
    better: Better
    scores: Scores


@dataclass(frozen=True)
class LossDescription:
    """What is known of a loss before it is built.

    Attributes:
        text: The loss with its options, printed canonically.
        name: Its kebab-case name.
        tensors: What it takes from the model.
        better: Whether lower or higher values are better.
        scores: What it takes the tensors for, with these options.
        min_opset: The lowest opset that it can be built for.
    """

    text: str
    name: str
    tensors: tuple[str, ...]
    better: Better
    scores: Scores
    min_opset: int


def parse_losses(text: str) -> tuple[PassSpec, ...]:
    """Losses as text: ``mse,sparse-softmax-cross-entropy{axis=1 reduction=sum}``.

    Raises:
        UsageError: The text does not follow the grammar, or names no loss.
    """
    specs = parse_pipeline(text)
    if not specs:
        raise UsageError("no loss is named")
    return specs


def describe_loss(spec: PassSpec) -> LossDescription:
    """What is known of a loss before it is built.

    Raises:
        UsageError: The loss or one of its options is unknown.
    """
    with opened_loss(spec.name) as loss:
        options = build("loss", loss.options, spec)
        text = print_with_options(spec.name, options)
        scores = loss.scores_with(options)
        return LossDescription(text, loss.name, loss.tensors, loss.better, scores, loss.min_opset)


def build_loss(
    spec: PassSpec, tensors: Sequence[LossTensor], opset: int = DEFAULT_OPSET
) -> LossModel:
    """Build a loss for the tensors of a model.

    Args:
        spec: The loss and its options.
        tensors: The tensors that it takes, in the order of ``describe_loss(spec).tensors``.
        opset: The opset of the model that it is for.

    Raises:
        UsageError: The loss or an option is unknown, the tensors are too many, too few, of
            another rank, dtype or size than the loss takes, or the opset is too low.
    """
    with opened_loss(spec.name) as loss:
        options = build("loss", loss.options, spec)
        _check(loss, tensors, opset)
        computed_in = _COMPUTED_IN[tensors[0].dtype]
        graph = LossGraph(loss.name, opset, computed_in)
        variables = [
            _tensor_input(graph, name, tensor)
            for name, tensor in zip(loss.tensors, tensors, strict=True)
        ]
        try:
            result = loss.function(graph, *variables, **vars(options))
        except UsageError as error:
            raise UsageError(f"loss {loss.name} on {_listed(tensors)}: {error}") from None
        if not graph.is_tensor(result):
            raise UsageError(
                f"loss {loss.name} returned {type(result).__name__}; "
                "it must return the variable that holds the loss"
            )
        proto = graph.built(result, OUTPUT)
        text = print_with_options(spec.name, options)
        scores = loss.scores_with(options)
    model = _typed(proto, computed_in, opset)
    data = tuple(str(each.name) for each in model.graph.inputs[len(tensors) :])
    return LossModel(text, loss.name, model, loss.tensors, data, loss.better, scores)


def _check(loss: Loss, tensors: Sequence[LossTensor], opset: int) -> None:
    if len(tensors) != len(loss.tensors):
        raise UsageError(
            f"loss {loss.name} takes {len(loss.tensors)} tensors of the model "
            f"({', '.join(loss.tensors)}), {len(tensors)} given"
        )
    for name, tensor in zip(loss.tensors, tensors, strict=True):
        if tensor.dtype not in _COMPUTED_IN:
            raise UsageError(
                f"loss {loss.name} takes floating-point {name}, '{tensor.name}' is "
                f"{tensor.dtype.name.lower()}; name the tensor before it was rounded or compared"
            )
    if len({_COMPUTED_IN[tensor.dtype] for tensor in tensors}) > 1:
        raise UsageError(f"loss {loss.name} takes tensors of one dtype: {_listed(tensors)}")
    if opset < loss.min_opset:
        raise UsageError(
            f"loss {loss.name} needs opset {loss.min_opset}, the model has {opset}; "
            "run upgrade-opset first"
        )


def _listed(tensors: Sequence[LossTensor]) -> str:
    """``'y' float[N,10]``."""
    return ", ".join(
        f"'{each.name}' {each.dtype.name.lower()}[{','.join(map(_dim_text, each.shape))}]"
        for each in tensors
    )


def _dim_text(dim: int | str | None) -> str:
    return "?" if dim is None else str(dim)


def _tensor_input(graph: LossGraph, name: str, tensor: LossTensor) -> Variable:
    given: Any = graph.data_input(name, tensor.dtype, tensor.shape)
    if tensor.dtype == graph.dtype:
        return given
    wide = graph.cast(given)
    wide.dtype, wide.shape = int(graph.dtype), list(tensor.shape)
    return wide


def _typed(proto: onnx.ModelProto, dtype: ir.DataType, opset: int) -> ir.Model:
    """The model with its output typed, and intermediate types where they are known."""
    proto.ir_version = fitting_ir_version(0, {"": opset})
    # The checker wants some shape, inference the true one or none.
    some, none = (onnx.helper.make_tensor_value_info(OUTPUT, int(dtype), s) for s in ((), None))
    try:
        proto.graph.output[0].CopyFrom(some)
        onnx.checker.check_model(proto)
        proto.graph.output[0].CopyFrom(none)
        typed = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        message = " ".join(str(error).split())[:300]
        raise UsageError(f"loss {proto.graph.name} builds an invalid model: {message}") from None
    initializers = {each.name for each in typed.graph.initializer}
    known = [each for each in typed.graph.value_info if each.name not in initializers]
    del typed.graph.value_info[:]
    typed.graph.value_info.extend(known)
    return ir.from_proto(typed)
