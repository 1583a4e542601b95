"""Refuses models that answer differently each time: nothing about them can be measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import InvalidModelError
from onnxfold.passes.walk import all_nodes, label
from onnxfold.runtime.session import REFERENCE, Session

_RANDOM_OPS = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)


def check_repeatable(model: ir.Model, feed: Mapping[str, Any]) -> None:
    """Run ``model`` twice on ``feed``, where it has operators that throw dice.

    Raises:
        InvalidModelError: The outputs differ; names the first such operator.
        ExecutionError: ONNX Runtime failed.
    """
    node = next((each for each in all_nodes(model) if _is_random(each)), None)
    if node is None:
        return
    session = Session(model, REFERENCE)
    first, second = session.run(feed), session.run(feed)
    if all(_same(first[name], second[name]) for name in first):
        return
    raise InvalidModelError(
        f"{session.label}: the same input gives different outputs: {label(node)} is random; export "
        "the model for inference"
    )


def _is_random(node: ir.Node) -> bool:
    if node.domain:
        return False
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant_array(node.inputs[2])
        return training is None or bool(training.any())
    return node.op_type in _RANDOM_OPS


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, list):
        ones, others = cast("list[Any]", first), cast("list[Any]", second)
        return len(ones) == len(others) and all(map(_same, ones, others))
    one, other = np.asarray(first), np.asarray(second)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
