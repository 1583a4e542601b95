"""Reshape: carries a layout that keeps together, and in order, the axes that it joins or splits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxfold.passes.layouts.carry import Carry, Handler, Known, data_operand
from onnxfold.passes.layouts.permutation import Permutation
from onnxfold.passes.shapes import reshape_target

Dim: TypeAlias = int | str
"""A dimension: a number, or a name for one that is not known."""


@dataclass(frozen=True)
class Block:
    """Axes before a Reshape and the axes after it that hold the same elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def turned(self) -> Block:
        """The same for the Reshape back."""
        return Block(self.after, self.before)


def blocks_of(before: Sequence[Dim], after: Sequence[Dim]) -> list[Block] | None:
    """The smallest groups of axes that correspond; None where they cannot be told apart."""
    blocks: list[Block] = []
    left = right = 0
    while left < len(before) or right < len(after):
        start, begin = left, right
        left, right = min(left + 1, len(before)), min(right + 1, len(after))
        # An axis of 1 on one side only is a block of its own.
        if before[start:left] == [1] and after[begin:right] != [1]:
            right = begin
        elif after[begin:right] == [1] and before[start:left] != [1]:
            left = start
        while _size(before[start:left]) != _size(after[begin:right]) and not (
            left == len(before) and right == len(after)
        ):
            if (_lacks(before[start:left], after[begin:right]) and left < len(before)) or (
                right == len(after)
            ):
                left += 1
            else:
                right += 1
        if _size(before[start:left]) != _size(after[begin:right]):
            return None
        blocks.append(Block(tuple(range(start, left)), tuple(range(begin, right))))
    return blocks


def carried(blocks: Sequence[Block], layout: Permutation) -> Permutation | None:
    """The layout after a Reshape from ``layout`` before it."""
    found: list[int] = []
    placed: dict[Block, int] = {}
    for block in blocks:
        stored = [layout.index(axis) for axis in block.before]
        if stored and stored != list(range(stored[0], stored[0] + len(stored))):
            return None
        placed[block] = stored[0] if stored else -1
    for block in sorted((each for each in blocks if each.before), key=placed.__getitem__):
        found += block.after
    for block in blocks:
        if block.before:
            continue
        for axis in block.after:
            found.insert(found.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(found)


def dims_around(node: ir.Node) -> tuple[list[Dim], list[Dim]] | None:
    """The dimensions before and after a Reshape, where all of them have a number or a name."""
    source, target = node.inputs[0], reshape_target(node)
    if source is None or source.shape is None or target is None:
        return None
    before: list[Dim] = []
    for axis, dim in enumerate(source.shape):
        before.append(dim if isinstance(dim, int) else f"{axis}")
    if 0 in before or any(dim == 0 and axis >= len(before) for axis, dim in enumerate(target)):
        return None
    after = [before[axis] if dim == 0 else dim for axis, dim in enumerate(target)]
    if -1 not in after:
        return before, after
    names = Counter(dim for dim in before if isinstance(dim, str))
    names.subtract(dim for dim in after if isinstance(dim, str))
    open_names = [name for name, count in names.items() if count > 0]
    left, rest = divmod(_number(before), _number([dim for dim in after if dim != -1]))
    if rest or len(open_names) > 1 or (open_names and left != 1):
        return None
    return before, [(open_names or [left])[0] if dim == -1 else dim for dim in after]


def target_of(dims: Sequence[Dim], before: Sequence[Dim]) -> list[int] | None:
    """``dims`` as Reshape of ``before`` takes them; None where two of them are open."""
    target = [dim if isinstance(dim, int) else -1 for dim in dims]
    if target.count(-1) < 2:
        return target
    copied = [
        0 if axis < len(before) and isinstance(dim, str) and before[axis] == dim else number
        for axis, (dim, number) in enumerate(zip(dims, target, strict=True))
    ]
    return copied if copied.count(-1) < 2 else None


def _reshape(node: ir.Node, known: Known) -> Carry | None:
    dims = dims_around(node)
    blocks = blocks_of(*dims) if dims is not None else None
    if dims is None or blocks is None or (known.index and not known.is_output):
        return None
    before, after = dims
    if len(known.layout) != len(after if known.is_output else before):
        return None
    turned = [block.turned() for block in blocks] if known.is_output else blocks
    other = carried(turned, known.layout)
    if other is None:
        return None
    source, result = (other, known.layout) if known.is_output else (known.layout, other)
    target = target_of([after[axis] for axis in result], [before[axis] for axis in source])
    operand = data_operand(node, 0, source)
    if target is None or operand is None:
        return None
    shape = np.array(target, dtype=np.int64)
    return Carry(operand[0], (result,), {"allowzero": None}, {**operand[1], 1: shape})


def _number(dims: Sequence[Dim]) -> int:
    return math.prod(dim for dim in dims if isinstance(dim, int))


def _size(dims: Sequence[Dim]) -> tuple[int, list[str]]:
    return _number(dims), sorted(dim for dim in dims if isinstance(dim, str))


def _lacks(before: Sequence[Dim], after: Sequence[Dim]) -> bool:
    """Whether what is missing for equality is missing in ``before``."""
    (numbers, names), (others, wanted) = _size(before), _size(after)
    if names != wanted:
        return len(names) < len(wanted)
    return numbers < others


EXACT: dict[str, Handler] = {"Reshape": _reshape}
"""Bit-identical in every layout that it carries."""
