"""The structure gate: names, order, element types and shapes, before any number is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.specs import TensorSpec, dtype_name


def flatten_outputs(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs as arrays: sequences become ``name[i]``, maps ``name.keys`` and ``name.values``."""
    arrays: dict[str, Array] = {}
    for name, value in outputs.items():
        _flatten(name, value, arrays)
    return arrays


def signature_differences(
    reference: Sequence[TensorSpec], candidate: Sequence[TensorSpec], *, what: str, additive: bool
) -> tuple[str, ...]:
    """How a model's declared inputs or outputs differ from the original's.

    Args:
        reference: What the original declares.
        candidate: What the rewritten model declares.
        what: ``input`` or ``output``, for the reasons.
        additive: Whether the candidate may have more of them.

    Returns:
        One reason per difference. A symbolic output dimension may become fixed or the other way
        round, as shape inference does; an input dimension may only be opened: what users feed
        today they can feed then.
    """
    names = [spec.name for spec in reference]
    reasons = name_differences(names, [s.name for s in candidate], what=what, additive=additive)
    by_name = {spec.name: spec for spec in candidate}
    pairs = [(spec, by_name[spec.name]) for spec in reference if spec.name in by_name]
    return reasons + tuple(
        f"{what} '{old.name}': the candidate declares {new}, wanted {old}"
        for old, new in pairs
        if not _compatible(old, new, strict=what == "input")
    )


def name_differences(
    reference: Sequence[str], candidate: Sequence[str], *, what: str, additive: bool
) -> tuple[str, ...]:
    """How two lists of names differ: what is missing, what is new, or the order."""
    missing = [name for name in reference if name not in candidate]
    extra = [] if additive else [name for name in candidate if name not in reference]
    reasons = [f"{what} '{name}' is missing from the candidate" for name in missing]
    reasons += [f"{what} '{name}' of the candidate is not in the reference" for name in extra]
    common = [name for name in candidate if name in reference]
    if not reasons and common != list(reference):
        reasons.append(f"{what}s are in the order {common}, wanted {list(reference)}")
    return tuple(reasons)


def output_differences(
    reference: Mapping[str, Array], candidate: Mapping[str, Array], *, additive: bool = False
) -> tuple[str, ...]:
    """How the outputs of one run differ in names, order, element type, rank or dimensions."""
    reasons = name_differences(list(reference), list(candidate), what="output", additive=additive)
    both = [(name, old, candidate[name]) for name, old in reference.items() if name in candidate]
    return reasons + tuple(
        f"output '{name}': got {_describe(new)}, wanted {_describe(old)}"
        for name, old, new in both
        if _describe(old) != _describe(new)
    )


def _describe(array: Array) -> str:
    return f"{dtype_name(array.dtype)}{list(array.shape)}"


def _compatible(old: TensorSpec, new: TensorSpec, *, strict: bool) -> bool:
    if old.dtype != new.dtype:
        return False
    if old.shape is None or new.shape is None:
        return True
    if len(old.shape) != len(new.shape):
        return False
    return all(_dims_agree(a, b, strict) for a, b in zip(old.shape, new.shape, strict=True))


def _dims_agree(old: int | str | None, new: int | str | None, strict: bool) -> bool:
    if isinstance(old, int) and isinstance(new, int):
        return old == new
    return not strict or isinstance(old, int) or not isinstance(new, int)


def _flatten(name: str, value: Any, arrays: dict[str, Array]) -> None:
    if isinstance(value, Mapping):
        mapping = cast(Mapping[Any, Any], value)
        arrays[f"{name}.keys"] = _array(list(mapping.keys()))
        arrays[f"{name}.values"] = _array(list(mapping.values()))
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(cast(Sequence[Any], value)):
            _flatten(f"{name}[{index}]", item, arrays)
        return
    arrays[name] = _array(value)


def _array(value: Any) -> Array:
    array: Array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array
