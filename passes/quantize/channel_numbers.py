"""Measured numbers a channel of a node, as an option of a pass: text, files and checks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from onnxfold.passes.errors import UsageError

_VERSION = 1

NumbersT = TypeVar("NumbersT", bound="ChannelNumbers")


class ChannelNumbers(Mapping[str, "tuple[float, ...]"]):
    """Node name -> one number per channel.

    Immutable and hashable by content. As an option it is the path of a JSON file once it has been
    saved or loaded; before that, its JSON text.

    Attributes:
        plural: What the numbers are, in messages and as ``onnxfold-...`` in files.
        key: The numbers' key in the file.
        path: Where it was loaded from or saved to; not part of equality.
    """

    plural: ClassVar[str]
    key: ClassVar[str]

    def __init__(self, numbers: Mapping[str, Sequence[float]], *, path: Path | None = None) -> None:
        """Check and copy ``numbers``.

        Raises:
            UsageError: A number is not finite.
        """
        checked = {name: self._checked(name, numbers[name]) for name in sorted(numbers)}
        self._numbers = MappingProxyType(checked)
        self.path = path

    def __getitem__(self, name: str) -> tuple[float, ...]:
        return self._numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(self._numbers.items()))

    def save(self: NumbersT, path: Path | str) -> NumbersT:
        """Write to ``path`` as JSON, bit for bit, and return the saved numbers."""
        path = Path(path)
        path.write_text(self._to_json() + "\n", encoding="utf-8")
        return type(self)(self, path=path)

    @classmethod
    def from_text(cls: type[NumbersT], text: str) -> NumbersT:
        """Load the file ``text`` names, or parse ``text`` itself where it is JSON.

        Raises:
            UsageError: The file is missing or holds something else.
        """
        if text.startswith("{"):
            return cls(cls._from_json(text, cls.key))
        path = Path(text)
        try:
            return cls(cls._from_json(path.read_text(encoding="utf-8"), text), path=path)
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; measure the {cls.plural} first") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error

    def to_text(self) -> str:
        """The path, or the JSON text of numbers that are in memory only."""
        return str(self.path) if self.path is not None else self._to_json()

    def _to_json(self) -> str:
        # Python prints floats with the digits that give them back exactly.
        document = {"format": self._format(), "version": _VERSION, self.key: dict(self)}
        return json.dumps(document, ensure_ascii=False)

    @classmethod
    def _format(cls) -> str:
        return f"onnxfold-{cls.plural.replace(' ', '-')}"

    @classmethod
    def _from_json(cls, text: str, where: str) -> dict[str, tuple[float, ...]]:
        try:
            document: Any = json.loads(text)
            if document["format"] != cls._format() or document["version"] != _VERSION:
                raise ValueError(f"expected format {cls._format()}, version {_VERSION}")
            found: dict[str, Any] = document[cls.key]
            return {name: tuple(map(float, each)) for name, each in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{where}: not a file of {cls.plural} ({error})") from error

    @classmethod
    def _checked(cls, name: str, numbers: Sequence[float]) -> tuple[float, ...]:
        checked = tuple(float(each) for each in numbers)
        if not all(math.isfinite(each) for each in checked):
            raise UsageError(
                f"one of the {cls.plural} of node '{name}' is not finite; measure again"
            )
        return checked
