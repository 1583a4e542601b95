"""Samples for a framework to run: those of the request, or random ones of the right shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import (
    Array,
    Feed,
    FrontEndError,
    Request,
    read_feeds,
)

_IMAGE_SIDE, _LENGTH = 64, 8
_ROWS = (1, 2)
"""How many rows made-up samples have in turn, where the first dimension is open."""


@dataclass(frozen=True)
class Port:
    """An input of the framework's model.

    Attributes:
        name: In the framework, without decorations.
        dtype: The element type.
        shape: The dimensions; None for one that is open.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def draw(self, rng: np.random.Generator, rows: int = 1) -> Array:
        """Random values: all codes of 8-bit integers, zeros and ones of others, normal numbers.

        Text is "0" or "1".
        """
        rank = len(self.shape)
        shape = tuple(_size(dim, axis, rank, rows) for axis, dim in enumerate(self.shape))
        if self.dtype.kind == "f":
            return rng.standard_normal(shape).astype(self.dtype)
        if self.dtype.kind in "iu" and self.dtype.itemsize == 1:
            limits = np.iinfo(self.dtype)
            codes = rng.integers(limits.min, limits.max, size=shape, endpoint=True)
            return codes.astype(self.dtype)
        bits = rng.integers(2, size=shape)
        return bits.astype(str if self.dtype == object else self.dtype).astype(self.dtype)


def samples(request: Request, folder: Path, ports: Sequence[Port]) -> list[Feed]:
    """Feeds by the framework's names: those that came with the request, or made up.

    Raises:
        FrontEndError: A feed lacks an input.
    """
    given = read_feeds(folder)
    if not given:
        rng = np.random.default_rng(request.seed)
        rows = itertools.islice(itertools.cycle(_ROWS), request.samples)
        return [{port.name: port.draw(rng, count) for port in ports} for count in rows]
    names = dict(zip(request.inputs, (port.name for port in ports), strict=True))
    feeds = [{names.get(name, name): array for name, array in feed.items()} for feed in given]
    for port in ports:
        if port.name not in feeds[0]:
            known = ", ".join(f"'{name}'" for name in feeds[0])
            raise FrontEndError(f"input '{port.name}' is not fed; the data has {known}", "usage")
    return feeds


def renamed(feed: Feed, names: Sequence[str], new_names: Sequence[str]) -> Feed:
    """``feed`` by other names, which stand in the same order."""
    places = dict(zip(names, new_names, strict=True))
    return {places[name]: array for name, array in feed.items() if name in places}


def _size(dim: int | None, axis: int, rank: int, rows: int) -> int:
    if dim is not None:
        return dim
    if axis == 0:
        return rows
    return _IMAGE_SIDE if rank == 4 else _LENGTH
