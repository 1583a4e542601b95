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
_SHARES = (1.0, 0.25)
"""How much of a known range made-up samples take in turn: noise as wide as the range is in every
place the same, and its means, like those of most of what a network computes, hardly move."""


@dataclass(frozen=True)
class Port:
    """An input of the framework's model.

    Attributes:
        name: In the framework, without decorations.
        dtype: The element type.
        shape: The dimensions; None for one that is open.
        span: The least and the largest value that it takes, where the source says so.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    span: tuple[float, float] | None = None

    def draw(self, rng: np.random.Generator, rows: int = 1, share: float = 1.0) -> Array:
        """Random values: all codes of 8-bit integers, zeros and ones of others, normal numbers.

        Text is "0" or "1".

        Args:
            rng: Where they come from.
            rows: The size of the first dimension, where it is open.
            share: Of the span, where there is one: a part of it that lies anywhere.
        """
        rank = len(self.shape)
        shape = tuple(_size(dim, axis, rank, rows) for axis, dim in enumerate(self.shape))
        if self.span is not None:
            return self._within(self.span, rng, shape, share)
        if self.dtype.kind == "f":
            return rng.standard_normal(shape).astype(self.dtype)
        if self.dtype.kind in "iu" and self.dtype.itemsize == 1:
            limits = np.iinfo(self.dtype)
            codes = rng.integers(limits.min, limits.max, size=shape, endpoint=True)
            return codes.astype(self.dtype)
        bits = rng.integers(2, size=shape)
        return bits.astype(str if self.dtype == object else self.dtype).astype(self.dtype)

    def _within(
        self,
        span: tuple[float, float],
        rng: np.random.Generator,
        shape: tuple[int, ...],
        share: float,
    ) -> Array:
        width = span[1] - span[0]
        low = span[0] + (1 - share) * width * rng.random()
        values = low + share * width * rng.random(shape)
        return (np.rint(values) if self.dtype.kind in "iu" else values).astype(self.dtype)


def samples(request: Request, folder: Path, ports: Sequence[Port]) -> list[Feed]:
    """Feeds by the framework's names: those that came with the request, or made up.

    Raises:
        FrontEndError: A feed lacks an input.
    """
    given = read_feeds(folder)
    if not given:
        rng = np.random.default_rng(request.seed)
        ways = itertools.islice(itertools.cycle(zip(_ROWS, _SHARES, strict=True)), request.samples)
        return [{port.name: port.draw(rng, *way) for port in ports} for way in ways]
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
