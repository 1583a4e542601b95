"""The ranges of values that tensors take on calibration data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.array_file import arrays_in, refusing

_FORMAT = "onnxfold-ranges"
_VERSION = 1


class Ranges(Mapping[str, "tuple[float, float]"]):
    """Tensor name -> (lowest, highest) value: what calibration hands to ``insert-qdq``.

    Immutable and hashable by content. As an option it is a path (``.json`` or ``.npz``) once it
    has been saved or loaded; before that, its JSON text.

    Attributes:
        path: Where it was loaded from or saved to; not part of equality.
        notes: What calibration had to say, such as tensors that were never computed.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        *,
        path: Path | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Check and copy ``ranges``.

        Raises:
            UsageError: A range is not finite, or its low end is above its high end.
        """
        checked = {name: _checked(name, *ranges[name]) for name in sorted(ranges)}
        self._ranges = MappingProxyType(checked)
        self.path = path
        self.notes = notes

    def __getitem__(self, name: str) -> tuple[float, float]:
        return self._ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(self._ranges.items()))

    def union(self, other: Ranges) -> Ranges:
        """Every tensor of both, with the widest range; merges shards of min-max calibration."""
        merged = dict(self)
        for name, (low, high) in other.items():
            known = merged.get(name, (low, high))
            merged[name] = (min(low, known[0]), max(high, known[1]))
        return Ranges(merged, notes=tuple(dict.fromkeys(self.notes + other.notes)))

    def save(self, path: Path | str) -> Ranges:
        """Write to ``path`` (``.npz``, else JSON), bit for bit, and return the saved ranges."""
        path = Path(path)
        if path.suffix == ".npz":
            pairs = np.array(list(self.values()), dtype=np.float64).reshape(-1, 2)
            with path.open("wb") as file:
                np.savez(file, names=np.array(list(self), dtype=np.str_), ranges=pairs)
        else:
            path.write_text(self._to_json(indent=1) + "\n", encoding="utf-8")
        return Ranges(self, path=path, notes=self.notes)

    @classmethod
    def load(cls, path: Path | str) -> Ranges:
        """Read what ``save`` wrote.

        Raises:
            UsageError: The file is missing or holds no ranges.
        """
        path = Path(path)
        with refusing(path, "calibration ranges", "calibrate"):
            ranges = (
                _from_npz(path) if path.suffix == ".npz" else _from_json(path.read_text("utf-8"))
            )
        return cls(ranges, path=path)

    @classmethod
    def from_text(cls, text: str) -> Ranges:
        """Load the file ``text`` names, or parse ``text`` itself where it is JSON.

        Raises:
            UsageError: The file is missing or holds no ranges.
        """
        if not text.startswith("{"):
            return cls.load(text)
        try:
            return cls(_from_json(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"ranges: not valid: {error}") from error

    def to_text(self) -> str:
        """The path, or the JSON text of ranges that are in memory only."""
        return str(self.path) if self.path is not None else self._to_json()

    def _to_json(self, indent: int | None = None) -> str:
        # Python prints floats with the digits that give them back exactly.
        document = {"format": _FORMAT, "version": _VERSION, "ranges": dict(self)}
        return json.dumps(document, indent=indent, ensure_ascii=False)


def _from_npz(path: Path) -> dict[str, tuple[float, float]]:
    with arrays_in(path) as file:
        names: list[str] = file["names"].tolist()
        pairs: list[list[float]] = file["ranges"].tolist()
    return {name: (low, high) for name, (low, high) in zip(names, pairs, strict=True)}


def _from_json(text: str) -> dict[str, tuple[float, float]]:
    document: Any = json.loads(text)
    if document["format"] != _FORMAT or document["version"] != _VERSION:
        raise ValueError(f"expected format {_FORMAT}, version {_VERSION}")
    return {name: (float(low), float(high)) for name, (low, high) in document["ranges"].items()}


def _checked(name: str, low: float, high: float) -> tuple[float, float]:
    low, high = float(low), float(high)
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise UsageError(f"the range of tensor '{name}' is [{low}, {high}]; calibrate again")
    return low, high
