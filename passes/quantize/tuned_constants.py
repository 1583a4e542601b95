"""Constants that were tuned on data: what ``set-constants`` needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError

_FORMAT = "onnxfold-tuned-constants-1"
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, BadZipFile)

_TYPES = ("float32", "int32", "int8", "uint8")

Place: TypeAlias = tuple[str, int]
"""The name of a node, and which of its inputs."""


class TunedConstants(Mapping[Place, Array]):
    """Place -> the constant to be read there: float32, int32, or codes in 8 bits.

    Immutable and hashable by content. As an option it is the path of an ``.npz``: large arrays
    have no other text.

    Attributes:
        path: Where it was loaded from or saved to; not part of equality.
    """

    def __init__(self, constants: Mapping[Place, Array], *, path: Path | None = None) -> None:
        """Copy ``constants``.

        Raises:
            UsageError: One is neither real nor of whole numbers.
        """
        kept = {place: _checked(place, constants[place]) for place in sorted(constants)}
        self._constants = MappingProxyType(kept)
        self.path = path
        self._digest = ""

    def __getitem__(self, place: Place) -> Array:
        return self._constants[place]

    def __iter__(self) -> Iterator[Place]:
        return iter(self._constants)

    def __len__(self) -> int:
        return len(self._constants)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TunedConstants) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of all that it holds."""
        if not self._digest:
            content = hashlib.sha256()
            for (node, index), array in self.items():
                content.update(f"{node} {index} {array.dtype} {array.shape} ".encode())
                content.update(array.tobytes())
            self._digest = content.hexdigest()
        return self._digest

    def save(self, path: Path | str) -> TunedConstants:
        """Write to ``path`` (``.npz``), bit for bit, and return the saved constants."""
        path = Path(path)
        arrays: dict[str, Any] = {
            f"constant_{index}": array for index, array in enumerate(self.values())
        }
        arrays["format"] = np.array(_FORMAT)
        arrays["nodes"] = np.array([node for node, _ in self], dtype=np.str_)
        arrays["inputs"] = np.array([index for _, index in self], dtype=np.int64)
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return TunedConstants(self, path=path)

    @classmethod
    def load(cls, path: Path | str) -> TunedConstants:
        """Read what ``save`` wrote.

        Raises:
            UsageError: The file is missing or holds something else.
        """
        path = Path(path)
        try:
            # A file that numpy opens itself stays open when it is refused.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise ValueError(f"expected format {_FORMAT}")
                nodes: list[str] = file["nodes"].tolist()
                inputs: list[int] = file["inputs"].tolist()
                places = list(zip(nodes, inputs, strict=True))
                found = {place: file[f"constant_{i}"] for i, place in enumerate(places)}
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; tune the model first") from None
        except _UNREADABLE as error:
            raise UsageError(f"{path}: not a file of tuned constants ({error})") from error
        return cls(found, path=path)

    @classmethod
    def from_text(cls, text: str) -> TunedConstants:
        """Load the file ``text`` names.

        Raises:
            UsageError: The file is missing or holds something else.
        """
        return cls.load(text)

    def to_text(self) -> str:
        """The path.

        Raises:
            UsageError: There is none yet.
        """
        if self.path is None:
            raise UsageError("tuned constants in memory have no text: save them to an .npz first")
        return str(self.path)


def _checked(place: Place, array: Array) -> Array:
    kept = np.array(array)
    if str(kept.dtype) not in _TYPES:
        node, index = place
        raise UsageError(f"the constant for node '{node}', input {index}, is of type {kept.dtype}")
    kept.flags.writeable = False
    return kept
