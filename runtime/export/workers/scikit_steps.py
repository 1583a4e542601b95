"""The steps of an estimator: which tensor of the ONNX model each computes, and its values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import Feed

_METHODS = {1: "transform", 2: "predict_proba"}
"""What gives the last output of an operator, by how many it has: a classifier has a label first."""


@dataclass(frozen=True)
class Step:
    """An estimator within another one.

    Attributes:
        name: By its place, as ``set_params`` has it: ``columns__scale (StandardScaler)``.
        estimator: The fitted object.
        method: The method whose result the tensor is.
        tensor: In ONNX.
    """

    name: str
    estimator: Any
    method: str
    tensor: str


def steps_of(estimator: Any, topology: Any, model: Any) -> list[Step]:
    """The steps whose results the converter kept as tensors, in its order.

    Args:
        estimator: What was converted.
        topology: skl2onnx's, with an operator for each of its parts.
        model: The ONNX model, its outputs named.
    """
    names = {id(part): name for name, part in _parts(estimator)}
    outputs = {each.name for each in model.graph.output}
    made = {name for node in model.graph.node for name in node.output} - outputs
    found: list[Step] = []
    for scope in topology.scopes:
        for operator in scope.operators.values():
            part, method = operator.raw_operator, _METHODS.get(len(operator.outputs))
            tensor = str(operator.outputs[-1].onnx_name) if operator.outputs else ""
            if id(part) in names and tensor in made and method and hasattr(part, method):
                name = f"{names[id(part)]} ({type(part).__name__})"
                found.append(Step(name, part, method, tensor))
    return found


def values_inside(
    steps: Sequence[Step], tensors: Collection[str], run: Callable[[], object]
) -> Feed:
    """What the steps return while ``run`` runs the whole, in float32, by names of tensors."""
    found: Feed = {}
    with _listening([each for each in steps if each.tensor in tensors], found):
        run()
    return found


@contextmanager
def _listening(steps: Sequence[Step], found: Feed) -> Generator[None]:
    for step in steps:
        setattr(step.estimator, step.method, _heard(step, found))
    try:
        yield
    finally:
        for step in steps:
            # What was set on the object hides the method of its class.
            vars(step.estimator).pop(step.method, None)


def _heard(step: Step, found: Feed) -> Callable[..., Any]:
    compute: Callable[..., Any] = getattr(step.estimator, step.method)

    def call(*arguments: Any, **options: Any) -> Any:
        result = compute(*arguments, **options)
        values = result.toarray() if hasattr(result, "toarray") else result
        found[step.tensor] = np.asarray(values, np.float32)
        return result

    return call


def _parts(estimator: Any, path: str = "") -> Generator[tuple[str, Any]]:
    """What an estimator is made of, and that in turn, by place."""
    for name, part in _children(estimator):
        if hasattr(part, "get_params"):
            place = f"{path}__{name}" if path else name
            yield place, part
            yield from _parts(part, place)


def _children(estimator: Any) -> list[tuple[str, Any]]:
    named: Mapping[str, Any] = getattr(estimator, "named_estimators_", {})
    groups: list[Any] = [
        getattr(estimator, "steps", ()),
        getattr(estimator, "transformers_", ()),
        getattr(estimator, "transformer_list", ()),
        list(named.items()),
        [("best_estimator", getattr(estimator, "best_estimator_", None))],
    ]
    # Transformers of columns have the columns behind them.
    return [(str(each[0]), each[1]) for group in groups for each in group]
