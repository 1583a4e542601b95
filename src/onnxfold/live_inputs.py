"""The arguments of one call of a live module of torch, out of the user's data."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError


def example_of(model: object, data: object) -> dict[str, Any] | None:
    """What to trace a module of torch with: the first sample of the data, by ``forward``'s names.

    Args:
        model: Any live object.
        data: One array per argument (a dict or an .npz), the first axis counting samples; or a
            sequence of dicts, each of them what a call takes.

    Returns:
        None where the model is no module, or the data are of another kind.

    Raises:
        UsageError: The data lack an argument.
    """
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    sample = _first(data) if "torch" in packages and hasattr(model, "forward") else None
    if sample is None:
        return None
    taken, required = _arguments(cast("Any", model).forward)
    lacking = [name for name in required if name not in sample]
    if lacking:
        known = ", ".join(f"'{name}'" for name in sample)
        raise UsageError(
            f"live {type(model).__name__} takes '{lacking[0]}', and the data has {known}: call the "
            "arrays what forward calls its arguments"
        )
    torch: Any = importlib.import_module("torch")
    return {name: torch.from_numpy(_plain(sample[name])) for name in taken if name in sample}


def _arguments(forward: Any) -> tuple[list[str], list[str]]:
    """What ``forward`` takes by name, and what of it has to be given."""
    if hasattr(forward, "schema"):
        script = [each for each in forward.schema.arguments if each.name != "self"]
        names = [str(each.name) for each in script]
        return names, [str(each.name) for each in script if not each.has_default_value()]
    parameters = inspect.signature(forward).parameters.values()
    named = [
        each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    return [each.name for each in named], [
        each.name for each in named if each.default is each.empty
    ]


def _first(data: object) -> dict[str, Array] | None:
    if isinstance(data, str | os.PathLike):
        path = Path(cast("str | os.PathLike[str]", data))
        if path.suffix != ".npz" or not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name][:1] for name in archive.files if archive[name].ndim}
    if isinstance(data, Mapping):
        arrays = {str(name): np.asarray(each) for name, each in cast("Any", data).items()}
        return {name: array[:1] for name, array in arrays.items() if array.ndim}
    if isinstance(data, Sequence) and data and isinstance(data[0], Mapping):
        return {str(name): np.asarray(each) for name, each in cast("Any", data[0]).items()}
    return None


def _plain(array: Array) -> Array:
    """In the type that modules compute in."""
    kept = np.float32 if array.dtype == np.float64 else array.dtype
    return np.ascontiguousarray(array, kept)
