"""By how much the outputs of linear operators are off on average: what ``correct-bias`` needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxfold.passes.errors import UsageError

_FORMAT = "onnxfold-output-errors"
_VERSION = 1


class OutputErrors(Mapping[str, "tuple[float, ...]"]):
    """Node name -> mean of (original output - quantized output), one number per output channel.

    Immutable and hashable by content. As an option it is the path of a JSON file once it has been
    saved or loaded; before that, its JSON text.

    Attributes:
        path: Where it was loaded from or saved to; not part of equality.
    """

    def __init__(self, errors: Mapping[str, Sequence[float]], *, path: Path | None = None) -> None:
        """Check and copy ``errors``.

        Raises:
            UsageError: An error is not finite.
        """
        checked = {name: _checked(name, errors[name]) for name in sorted(errors)}
        self._errors = MappingProxyType(checked)
        self.path = path

    def __getitem__(self, name: str) -> tuple[float, ...]:
        return self._errors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._errors)

    def __len__(self) -> int:
        return len(self._errors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OutputErrors) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(self._errors.items()))

    def save(self, path: Path | str) -> OutputErrors:
        """Write to ``path`` as JSON, bit for bit, and return the saved errors."""
        path = Path(path)
        path.write_text(self._to_json() + "\n", encoding="utf-8")
        return OutputErrors(self, path=path)

    @classmethod
    def from_text(cls, text: str) -> OutputErrors:
        """Load the file ``text`` names, or parse ``text`` itself where it is JSON.

        Raises:
            UsageError: The file is missing or holds something else.
        """
        if text.startswith("{"):
            return cls(_from_json(text, "errors"))
        path = Path(text)
        try:
            return cls(_from_json(path.read_text(encoding="utf-8"), text), path=path)
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; measure the errors first") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error

    def to_text(self) -> str:
        """The path, or the JSON text of errors that are in memory only."""
        return str(self.path) if self.path is not None else self._to_json()

    def _to_json(self) -> str:
        # Python prints floats with the digits that give them back exactly.
        document = {"format": _FORMAT, "version": _VERSION, "errors": dict(self)}
        return json.dumps(document, ensure_ascii=False)


def _from_json(text: str, where: str) -> dict[str, tuple[float, ...]]:
    try:
        document: Any = json.loads(text)
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise ValueError(f"expected format {_FORMAT}, version {_VERSION}")
        found: dict[str, Any] = document["errors"]
        return {name: tuple(map(float, each)) for name, each in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: not a file of output errors ({error})") from error


def _checked(name: str, errors: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(each) for each in errors)
    if not all(math.isfinite(each) for each in numbers):
        raise UsageError(f"the output error of node '{name}' is not finite; measure again")
    return numbers
