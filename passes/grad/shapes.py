"""What is known of the types and shapes of values."""

from __future__ import annotations

import onnx_ir as ir


class UnknownTypeError(ValueError):
    """A rule needs a type, a rank or a dimension that is not known."""


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of ``value``.

    Raises:
        UnknownTypeError: It is not known.
    """
    if value.dtype is None:
        raise UnknownTypeError(f"the element type of '{value.name}' is not known")
    return value.dtype


def rank_of(value: ir.Value) -> int:
    """The number of dimensions of ``value``.

    Raises:
        UnknownTypeError: It is not known.
    """
    if value.shape is None:
        raise UnknownTypeError(f"the rank of '{value.name}' is not known")
    return len(value.shape)


def static_dims(value: ir.Value) -> tuple[int, ...] | None:
    """The dimensions of ``value`` where all are known numbers; some write -1 for unknown ones."""
    if value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int) and dim >= 0]
    return tuple(dims) if len(dims) == len(value.shape) else None


def same_dims(left: ir.Value, right: ir.Value) -> bool:
    """Whether both are known to have one shape: equal numbers, or equal symbols."""
    if left.shape is None or right.shape is None or len(left.shape) != len(right.shape):
        return False
    return all(_same_dim(a, b) for a, b in zip(left.shape, right.shape, strict=True))


def _same_dim(left: int | ir.SymbolicDim, right: int | ir.SymbolicDim) -> bool:
    if isinstance(left, int) or isinstance(right, int):
        return left == right
    return left.value is not None and left.value == right.value


def broadcast_axes(full: ir.Value, like: ir.Value) -> list[int] | None:
    """The axes of ``full`` along which ``like`` was broadcast; None where that is not known."""
    if full.shape is None or like.shape is None:
        return None
    added = len(full.shape) - len(like.shape)
    axes = list(range(added))
    for axis, dim in enumerate(like.shape, start=added):
        if dim == 1:
            axes += [axis] if full.shape[axis] != 1 else []
        elif not isinstance(dim, int) and not _same_dim(dim, full.shape[axis]):
            return None
    return axes
