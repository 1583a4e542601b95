"""Codes of weights that were learned from data: what ``round-weights`` needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError

_FORMAT = "onnxfold-weight-rounding-1"
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, BadZipFile)


class WeightRounding(Mapping[str, Array]):
    """Node name -> codes of its weights, of the weights' shape: int8, or uint8 where unsigned.

    Immutable and hashable by content. As an option it is the path of an ``.npz``: large arrays
    have no other text.

    Attributes:
        path: Where it was loaded from or saved to; not part of equality.
    """

    def __init__(self, codes: Mapping[str, Array], *, path: Path | None = None) -> None:
        """Check and copy ``codes``.

        Raises:
            UsageError: Codes are not whole numbers of 8 bits.
        """
        checked = {name: _checked(name, codes[name]) for name in sorted(codes)}
        self._codes = MappingProxyType(checked)
        self.path = path
        self._digest = ""

    def __getitem__(self, name: str) -> Array:
        return self._codes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightRounding) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of all that it holds."""
        if not self._digest:
            content = hashlib.sha256()
            for name, array in self.items():
                content.update(f"{name} {array.dtype} {array.shape} ".encode())
                content.update(array.tobytes())
            self._digest = content.hexdigest()
        return self._digest

    def save(self, path: Path | str) -> WeightRounding:
        """Write to ``path`` (``.npz``), bit for bit, and return the saved codes."""
        path = Path(path)
        arrays: dict[str, Any] = {
            f"codes_{index}": array for index, array in enumerate(self.values())
        }
        arrays["format"] = np.array(_FORMAT)
        arrays["names"] = np.array(list(self), dtype=np.str_)
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return WeightRounding(self, path=path)

    @classmethod
    def load(cls, path: Path | str) -> WeightRounding:
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
                names: list[str] = file["names"].tolist()
                codes = {name: file[f"codes_{index}"] for index, name in enumerate(names)}
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; learn the rounding first") from None
        except _UNREADABLE as error:
            raise UsageError(f"{path}: not a file of weight codes ({error})") from error
        return cls(codes, path=path)

    @classmethod
    def from_text(cls, text: str) -> WeightRounding:
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
            raise UsageError("weight codes in memory have no text: save them to an .npz first")
        return str(self.path)


def _checked(name: str, codes: Array) -> Array:
    numbers = np.asarray(codes)
    for dtype in (np.int8, np.uint8):
        narrow = numbers.astype(dtype)
        if np.array_equal(narrow, numbers):
            narrow = np.ascontiguousarray(narrow)
            narrow.flags.writeable = False
            return narrow
    raise UsageError(f"the codes of node '{name}' are not whole numbers of 8 bits")
