"""Permutations of axes: how transposes compose, and what they become when axes come and go.

A layout of a tensor ``v`` is a permutation ``p``: what is stored is ``transpose(v, p)``, whose
axis ``i`` is axis ``p[i]`` of ``v``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

import onnx_ir as ir

Permutation: TypeAlias = tuple[int, ...]


def identity(rank: int) -> Permutation:
    """The permutation that moves nothing."""
    return tuple(range(rank))


def compose(first: Sequence[int], second: Sequence[int]) -> Permutation:
    """One permutation for ``transpose(transpose(v, first), second)``."""
    return tuple(first[axis] for axis in second)


def inverse(permutation: Sequence[int]) -> Permutation:
    """What undoes ``permutation``."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def without(permutation: Sequence[int], axes: Collection[int]) -> Permutation:
    """``permutation`` after ``axes`` of the tensor are gone and the others counted anew."""
    kept = [axis for axis in permutation if axis not in axes]
    order = sorted(kept)
    return tuple(order.index(axis) for axis in kept)


def with_added(permutation: Sequence[int], axes: Collection[int]) -> Permutation:
    """``permutation`` after ``axes``, counted in the result, are new in the tensor.

    Where the new axes are stored is free: as in channels first or channels last if one of the
    two fits, or else beside the axis that each follows.
    """
    rank = len(permutation) + len(axes)
    for usual in ((0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)):
        if rank > 2 and without(usual, axes) == tuple(permutation):
            return usual
    kept = [axis for axis in range(rank) if axis not in axes]
    stored = [kept[axis] for axis in permutation]
    for axis in sorted(axes):
        stored.insert(stored.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(stored)


def permutation_of(node: ir.Node) -> Permutation | None:
    """The permutation of a Transpose node; None where it is not known."""
    given = node.attributes.get("perm")
    if given is not None:
        return None if given.is_ref() else tuple(given.as_ints())
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    return tuple(reversed(range(len(source.shape))))
