"""Leaves the batch of a model open that was exported for one size of it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import Feed, FrontEndError

_NAME = "batch"
_RECURRENT, _FIRST_STATE = ("LSTM", "GRU", "RNN"), 5


def open_batch(model: Any, batch: int, inputs: Sequence[str]) -> None:
    """Make the first dimension of ``inputs`` and of every output symbolic.

    Shapes that reshapes were given as constants begin with the size of the batch: that becomes
    "whatever is left", or "as it was" where another dimension is that already. Whether this was
    right, samples of another batch have to show.

    Args:
        model: An ``onnx.ModelProto``, changed in place.
        batch: The size that it was exported for.
        inputs: Those that have it as their first dimension.

    Raises:
        FrontEndError: An output has no such dimension.
    """
    numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
    shapes = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            shapes[node.output[0]] = node.attribute[0].t
    done: dict[str, str] = {}
    for node in list(model.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in shapes:
            continue
        name = node.input[1]
        if name not in done:
            old = numpy_helper.to_array(shapes[name])
            new = opened(old.tolist(), batch)
            done[name] = name if new is None else f"{name}_open"
            if new is not None:
                tensor = numpy_helper.from_array(np.array(new, np.int64), done[name])
                model.graph.initializer.append(tensor)
        node.input[1] = done[name]
    for node in model.graph.node:
        if node.op_type not in _RECURRENT:
            continue
        for place in range(_FIRST_STATE, min(len(node.input), _FIRST_STATE + 2)):
            name = node.input[place]
            if name in shapes and not numpy_helper.to_array(shapes[name]).any():
                # Zeros for one batch; no state at all means zeros for any.
                node.input[place] = ""
    # What was inferred for one size holds no more.
    del model.graph.value_info[:]
    opening = [each for each in model.graph.input if each.name in inputs]
    for value in (*opening, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims or dims[0].dim_value not in (batch, 0):
            raise FrontEndError(
                f"'{value.name}' has no batch of {batch} as its first dimension, so it cannot be "
                "left open"
            )
        dims[0].dim_param = _NAME


def opened(shape: Sequence[int], batch: int) -> list[int] | None:
    """A constant shape for any batch; None where it does not begin with ``batch``."""
    if not shape or shape[0] != batch:
        return None
    return [0 if -1 in shape else -1, *shape[1:]]


def joined(samples: Sequence[Feed]) -> Feed:
    """Samples as one, along the first axis."""
    return {name: np.concatenate([each[name] for each in samples]) for name in samples[0]}
