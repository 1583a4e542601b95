"""Arrays learned from data, as an option of a pass: their file, their text and what equals what."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar
from zipfile import BadZipFile

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError

_FORMAT_KEY = "format"
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, BadZipFile)

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")
FileT = TypeVar("FileT", bound="ArrayFile[Any, Any]")


@contextmanager
def refusing(path: Path, plural: str, remedy: str) -> Generator[None]:
    """Within this, what goes wrong in reading is the user's error, in one line.

    Args:
        path: What is read.
        plural: What it ought to hold.
        remedy: What makes such a file.

    Raises:
        UsageError: The file is missing or holds something else.
    """
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; {remedy} first") from None
    except _UNREADABLE as error:
        raise UsageError(f"{path}: not a file of {plural} ({error})") from error


@contextmanager
def arrays_in(path: Path) -> Generator[Mapping[str, Array]]:
    """The arrays of an ``.npz``, without pickles."""
    # A file that numpy opens itself stays open when it is refused.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        yield file


class ArrayFile(Mapping[KeyT, ItemT]):
    """Arrays by key, or what is made of several.

    Immutable and hashable by content. As an option it is the path of an ``.npz``: large arrays
    have no other text.

    Attributes:
        form: What the file says that it is.
        plural: What it holds, in messages.
        remedy: What makes such a file, in messages.
        path: Where it was loaded from or saved to; not part of equality.
    """

    form: ClassVar[str]
    plural: ClassVar[str]
    remedy: ClassVar[str]

    def __init__(self, items: Mapping[KeyT, ItemT], *, path: Path | None = None) -> None:
        """Hold ``items`` in their order."""
        self._items = MappingProxyType(dict(items))
        self.path = path
        self._digest = ""

    def __getitem__(self, key: KeyT) -> ItemT:
        return self._items[key]

    def __iter__(self) -> Iterator[KeyT]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of all that it holds."""
        if not self._digest:
            content = hashlib.sha256()
            for name, array in self._to_arrays().items():
                content.update(f"{name} {array.dtype} {array.shape} ".encode())
                content.update(array.tobytes())
            self._digest = content.hexdigest()
        return self._digest

    def save(self: FileT, path: Path | str) -> FileT:
        """Write to ``path`` (``.npz``), bit for bit, and return what was saved."""
        path = Path(path)
        arrays: dict[str, Any] = {_FORMAT_KEY: np.array(self.form), **self._to_arrays()}
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return type(self)(self, path=path)

    @classmethod
    def load(cls: type[FileT], path: Path | str) -> FileT:
        """Read what ``save`` wrote.

        Raises:
            UsageError: The file is missing or holds something else.
        """
        path = Path(path)
        with refusing(path, cls.plural, cls.remedy), arrays_in(path) as file:
            if str(file[_FORMAT_KEY]) != cls.form:
                raise ValueError(f"expected format {cls.form}")
            items = cls._from_arrays(file)
        return cls(items, path=path)

    @classmethod
    def from_text(cls: type[FileT], text: str) -> FileT:
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
            raise UsageError(f"{self.plural} in memory have no text: save them to an .npz first")
        return str(self.path)

    @abstractmethod
    def _to_arrays(self) -> dict[str, Array]:
        """All that it holds, by names in the file."""

    @classmethod
    @abstractmethod
    def _from_arrays(cls, arrays: Mapping[str, Array]) -> dict[KeyT, ItemT]:
        """What arrays of a file hold; any error of a lookup or a value means that it is broken."""
