"""Which tensors an optimizer moves: those with a gradient, chosen by name or regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.suggest import did_you_mean

_GRADIENT = "grad_"
_TRAINED_IN = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Trainable:
    """A weight to train.

    Attributes:
        name: Its name.
        value: The weight, an initializer of the main graph.
        gradient: The gradient of the loss with respect to it.
        shape: Its shape.
        decay: Its weight decay.
    """

    name: str
    value: ir.Value
    gradient: ir.Value
    shape: tuple[int, ...]
    decay: float


def gradient_outputs(model: ir.Model) -> dict[str, ir.Value]:
    """The outputs ``grad_<tensor>`` by the name of the tensor."""
    return {
        value.name.removeprefix(_GRADIENT): value
        for value in model.graph.outputs
        if value.name is not None and value.name.startswith(_GRADIENT)
    }


def choose_trainable(
    model: ir.Model, patterns: Sequence[str], decay: float, no_decay: Sequence[str]
) -> list[Trainable]:
    """The initializers of the main graph to train, in graph order.

    Args:
        model: A model with outputs ``grad_<tensor>``.
        patterns: Names, or regular expressions that match whole names; none means every
            initializer with a gradient.
        decay: The weight decay.
        no_decay: Names or regular expressions of weights without decay.

    Raises:
        UsageError: There are no gradients, a pattern matches nothing, or a tensor that it names
            has no gradient or cannot be trained.
    """
    gradients = gradient_outputs(model)
    initializers = model.graph.initializers
    with_gradient = [name for name in initializers if name in gradients]
    if not with_gradient:
        raise UsageError(
            f"model '{model.graph.name or ''}' has no outputs grad_<tensor> of its weights; "
            "add-gradient adds them, lower-gradient makes them run"
        )
    chosen: dict[str, None] = {} if patterns else dict.fromkeys(with_gradient)
    for pattern in patterns:
        chosen.update(dict.fromkeys(_matching(pattern, model, with_gradient)))
    for name in chosen:
        _check_dtype(initializers[name])
    free = _without_decay(no_decay, chosen)
    return [
        _trainable(value, gradients[name], 0.0 if name in free else decay)
        for name, value in initializers.items()
        if name in chosen
    ]


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` is ``name``, or a regular expression that matches the whole of it.

    Raises:
        UsageError: It is neither a name nor a regular expression.
    """
    if pattern == name:
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UsageError(f"'{pattern}' is no regular expression: {error}") from error


def _without_decay(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if matches(pattern, name)}
        if not matching:
            hint = did_you_mean(pattern, names) or "; a pattern has to match whole names"
            raise UsageError(f"no-decay: no trained weight matches '{pattern}'{hint}")
        found |= matching
    return found


def _trainable(value: ir.Value, gradient: ir.Value, decay: float) -> Trainable:
    name, tensor = value.name or "", value.const_value
    if tensor is None:
        raise UsageError(f"'{name}' has no value to start from")
    return Trainable(name, value, gradient, tuple(tensor.shape.numpy()), decay)


def _matching(pattern: str, model: ir.Model, with_gradient: Sequence[str]) -> list[str]:
    found = [name for name in with_gradient if matches(pattern, name)]
    if found:
        return found
    initializers = model.graph.initializers
    without = next((name for name in initializers if matches(pattern, name)), None)
    if without is None:
        hint = did_you_mean(pattern, initializers) or "; a pattern has to match whole names"
        raise UsageError(f"no weight of the model matches '{pattern}'{hint}")
    _check_dtype(initializers[without])
    raise UsageError(
        f"'{without}' is to be trained and the model has no output grad_{without}; "
        f"name it in add-gradient's wrt"
    )


def _check_dtype(value: ir.Value) -> None:
    if value.dtype in _TRAINED_IN:
        return
    dtype = "an unknown type" if value.dtype is None else value.dtype.name.lower()
    is_real = value.dtype is not None and value.dtype.is_floating_point()
    advice = "run convert-float32 first" if is_real else "train the float model, then quantize it"
    raise UsageError(f"'{value.name}' holds {dtype}, in which small steps are lost: {advice}")
