"""Checks of the shapes that a loss is given, and shapes it derives."""

from __future__ import annotations

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.graph import Variable


def need_rank(x: Variable, what: str, *ranks: int) -> None:
    """Refuse ``x`` where it has another rank.

    Raises:
        UsageError: It has; names ``what`` and the ranks.
    """
    if len(x.shape) not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise UsageError(f"{what} must have {wanted} dimensions, not {len(x.shape)}")


def need_samples(x: Variable, what: str) -> list[int]:
    """The axes of ``x`` behind the first, which counts samples.

    Raises:
        UsageError: There are none.
    """
    if len(x.shape) < 2:
        raise UsageError(f"{what} must have an axis of samples and at least one more")
    return list(range(1, len(x.shape)))


def need_same_shape(a: Variable, b: Variable, what: str) -> None:
    """Refuse tensors whose static shapes differ.

    Raises:
        UsageError: They do.
    """
    pairs = zip(a.shape, b.shape, strict=False)
    clash = any(isinstance(i, int) and isinstance(j, int) and i != j for i, j in pairs)
    if clash or len(a.shape) != len(b.shape):
        raise UsageError(f"{what} must have the same shape: {list(a.shape)} and {list(b.shape)}")
