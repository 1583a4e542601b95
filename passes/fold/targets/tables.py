"""Looking codes up in a table, with ops of ai.onnx."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.targets.builder import Builder

_INT32 = ir.DataType.INT32
_FEW_ELEMENTS = 512  # where two Reshape more take longer than a slow Gather


def look_up(
    codes: ir.Value,
    table: Array,
    affine: AffineType,
    like: ir.Value,
    build: Builder,
    *,
    lowest: int = 0,
    axis: int | None = None,
) -> ir.Value:
    """The entries of ``table`` for ``codes``.

    GatherElements where the sizes are known: ONNX Runtime's Gather copies element by element
    (200,704 of them in 1640 us, GatherElements in 190 us).

    Args:
        codes: uint8, uint16 or int16.
        table: [256] or [65536], or [channels, 256].
        affine: The type of the entries.
        like: What the result is named after.
        build: Where it is written.
        lowest: The code that the first entry is for.
        axis: The channel axis of ``codes``, where the table has rank 2.
    """
    shape = codes.shape if codes.shape is not None else like.shape
    to_index = {"to": int(_INT32)}
    index = build.insert("Cast", [codes], like, _INT32, attributes=to_index, shape=shape)
    if lowest:
        raised = build.constant(np.array(-lowest, np.int32), "table_offset")
        index = build.insert("Add", [index, raised], like, _INT32, shape=shape)
    if axis is not None:
        assert shape is not None
        sizes = [-1 if each == axis else 1 for each in range(len(shape))]
        starts = (np.arange(len(table), dtype=np.int32) * table.shape[1]).reshape(sizes)
        offset = build.constant(starts, "table_offsets")
        index = build.insert("Add", [index, offset], like, _INT32, shape=shape)
    flat_table = table.reshape(-1).astype(affine.dtype.numpy())
    return entries([flat_table], index, affine.dtype, like, build)[0]


def entries(
    tables: Sequence[Array],
    index: ir.Value,
    dtype: ir.DataType,
    like: ir.Value,
    build: Builder,
) -> list[ir.Value]:
    """The entries of each table of rank 1 at ``index``, whose shape they have."""
    shape = index.shape
    constants = [build.constant(each, "table") for each in tables]
    sizes = None if shape is None else sizes_for_reshape(shape)
    if shape is None or sizes is None or _elements(sizes) <= _FEW_ELEMENTS:
        return [
            build.insert("Gather", [each, index], like, dtype, shape=shape) for each in constants
        ]
    flat = _reshape(index, [-1], [None], like, build)
    found = [
        build.insert("GatherElements", [each, flat], like, dtype, shape=flat.shape)
        for each in constants
    ]
    return [_reshape(each, sizes, shape, like, build) for each in found]


def sizes_for_reshape(shape: ir.Shape) -> list[int] | None:
    """The sizes for a Reshape, with at most one left open; else None."""
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None


def _elements(sizes: Sequence[int]) -> int:
    """Number of elements; a size that is not known counts as 1, the usual batch."""
    return math.prod(size for size in sizes if size > 0)


def _reshape(
    value: ir.Value,
    sizes: list[int],
    shape: ir.Shape | Sequence[int | None],
    like: ir.Value,
    build: Builder,
) -> ir.Value:
    target = build.constant(np.array(sizes, np.int64), "shape")
    assert value.dtype is not None
    return build.insert("Reshape", [value, target], like, value.dtype, shape=shape)
