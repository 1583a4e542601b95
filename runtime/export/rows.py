"""Proves an open batch: several samples at once, against the framework's answers one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import InvalidModelError
from onnxfold.runtime.specs import Feed

_ROWS = 2


def has_open_batch(model: ir.Model) -> bool:
    """Whether the first dimension of some input is open."""
    return bool(_open_inputs(model))


def joined_samples(
    model: ir.Model, feeds: Sequence[Feed], expected: Sequence[Feed]
) -> tuple[Feed, Feed]:
    """Two samples as one: what to feed, and what the framework computed of one after the other.

    Args:
        model: With an open batch.
        feeds: By the model's names; the first one is taken twice if there is no other.
        expected: What the framework computed of them.

    Raises:
        InvalidModelError: An output does not follow the batch.
    """
    symbols = _open_inputs(model)
    chosen = [index % len(feeds) for index in range(_ROWS)]
    given = {
        name: np.concatenate([feeds[index][name] for index in chosen]) if name in symbols else array
        for name, array in feeds[0].items()
    }
    # Inputs without a batch are the same for all samples: what another feed had there would mix.
    wanted: Feed = {}
    for value in model.graph.outputs:
        name = value.name or ""
        axis = _axis(value, set(symbols.values()))
        parts = [expected[index][name] for index in chosen]
        if axis is None and not all(np.array_equal(parts[0], each) for each in parts):
            raise InvalidModelError(
                f"output '{name}' differs from sample to sample but has no dimension of the batch"
            )
        wanted[name] = parts[0] if axis is None else _concatenated(parts, axis)
    return given, wanted


def _open_inputs(model: ir.Model) -> dict[str, str]:
    """Inputs whose first dimension is open, and what it is called."""
    found: dict[str, str] = {}
    for value in model.graph.inputs:
        first = value.shape[0] if value.shape else 0
        if not value.is_initializer() and not isinstance(first, int):
            found[value.name or ""] = str(first.value)
    return found


def _axis(value: ir.Value, symbols: set[str]) -> int | None:
    """Where an output has the batch, or a multiple of it: samples lie one after the other there."""
    for axis, dim in enumerate(value.shape or ()):
        name = None if isinstance(dim, int) else dim.value
        if name is not None and (name in symbols or name.rpartition("*")[2] in symbols):
            return axis
    return None


def _concatenated(parts: Sequence[Array], axis: int) -> Array:
    return np.concatenate(parts, axis)
