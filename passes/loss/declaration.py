"""The ``@loss`` decorator: what a loss function says of itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from onnxfold.passes.errors import UsageError

Better: TypeAlias = Literal["lower", "higher"]
"""Which values of a loss are the better ones."""

Scores: TypeAlias = Literal["values", "logits", "probabilities", "log-probabilities"]
"""What a loss takes the model's tensors for."""

_SCORES_OF_OPTION: dict[str, Scores] = {
    "from_logits": "logits",
    "from_probabilities": "probabilities",
    "from_log_probabilities": "log-probabilities",
}


@dataclass(frozen=True)
class Loss:
    """A declared loss.

    Attributes:
        name: Its kebab-case name.
        function: Builds it: ``(graph, *tensors, **options) -> Variable``.
        tensors: What it takes from the model, in order.
        better: Whether lower or higher values are better.
        scores: What it takes these tensors for, unless an option says otherwise; or a function
            that tells it from the options.
        min_opset: The lowest opset it can be built for.
        options: A dataclass of its options.
    """

    name: str
    function: Callable[..., Any]
    tensors: tuple[str, ...]
    better: Better
    scores: Scores | Callable[[Any], Scores]
    min_opset: int
    options: type[Any]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Build it inside another loss."""
        return self.function(*arguments, **options)

    def scores_with(self, options: Any) -> Scores:
        """What it takes the model's tensors for with these options.

        A true option ``from_logits``, ``from_probabilities`` or ``from_log_probabilities`` decides.
        """
        asked = [name for name in _SCORES_OF_OPTION if getattr(options, name, False)]
        if len(asked) > 1:
            raise UsageError(f"loss {self.name}: it takes one of {' and '.join(asked)}")
        if asked:
            return _SCORES_OF_OPTION[asked[0]]
        return self.scores(options) if callable(self.scores) else self.scores


def loss(
    name: str,
    *,
    tensors: tuple[str, ...] = ("predictions",),
    better: Better = "lower",
    scores: Scores | Callable[[Any], Scores] = "values",
    min_opset: int = 13,
) -> Callable[[Callable[..., Any]], Loss]:
    """Declare a loss.

    The decorated function is given a :class:`~onnxfold.passes.loss.graph.LossGraph`, one
    graphsurgeon variable for each of ``tensors`` with its dtype and shape (half-precision ones
    already cast to float32), and its options. It adds nodes, makes the inputs that it needs with
    ``graph.data_input`` and returns the variable that holds the loss. Its keyword-only parameters
    are its options: annotated, with a default, of the types that options of passes may have.

    Args:
        name: Kebab-case name.
        tensors: What it takes from the model; identifiers.
        better: Whether lower or higher values are better.
        scores: What it takes these tensors for, or a function that tells it from the options, an
            object with an attribute for each. Options named ``from_logits``,
            ``from_probabilities`` and ``from_log_probabilities`` change that where they are true.
        min_opset: The lowest opset of the default domain that it can be built for.

    Raises:
        UsageError: The name or a tensor's name is malformed, or an option has no annotation or
            no default.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"the name of a loss is kebab-case, '{name}' is not")
    bad = [each for each in tensors if not each.isidentifier()]
    if bad or not tensors:
        raise UsageError(f"loss {name}: a tensor's name is an identifier, {bad or 'none'} is not")

    def declare(function: Callable[..., Any]) -> Loss:
        options = _options_of(name, function)
        return Loss(name, function, tensors, better, scores, min_opset, options)

    return declare


def _options_of(name: str, function: Callable[..., Any]) -> type[Any]:
    hints = typing.get_type_hints(function)
    fields: list[tuple[str, Any, Any]] = []
    for each in inspect.signature(function).parameters.values():
        if each.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if each.name not in hints or each.default is inspect.Parameter.empty:
            raise UsageError(f"loss {name}: option {each.name} needs an annotation and a default")
        fields.append((each.name, hints[each.name], dataclasses.field(default=each.default)))
    return dataclasses.make_dataclass(f"{function.__name__}_options", fields, frozen=True)
