"""The table of sensitivities: a value that reports show, files keep and searches order by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from onnxfold.passes.errors import UsageError

Method = Literal["fisher", "hessian", "measured"]
_FORMAT = "onnxfold-sensitivities-1"


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer is expected to add to the loss.

    Attributes:
        layer: Name of its node; ``output <name>`` for an output that is rounded.
        bits: Of its weights' codes; 0 where it has none.
        first: g.d: what the gradient says.
        second: d^T H d / 2: what the curvature says.
    """

    layer: str
    bits: int
    first: float
    second: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.first + self.second


class Sensitivities(Mapping[str, Sensitivity]):
    """Layer -> sensitivity.

    Attributes:
        method: Where the numbers come from.
        loss: What the loss is; ``relative error of the outputs`` where the user named none.
    """

    def __init__(self, rows: Iterable[Sensitivity], *, method: Method, loss: str) -> None:
        self._rows = {each.layer: each for each in rows}
        self.method = method
        self.loss = loss

    def __getitem__(self, layer: str) -> Sensitivity:
        return self._rows[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def worst_first(self) -> tuple[Sensitivity, ...]:
        """All rows, the most sensitive layer first."""
        return tuple(sorted(self.values(), key=lambda row: -row.total))

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "format": _FORMAT,
            "method": self.method,
            "loss": self.loss,
            "layers": [{**asdict(row), "total": row.total} for row in self.values()],
        }

    def save(self, path: Path | str) -> None:
        """Write to ``path`` as JSON."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Sensitivities:
        """Read what ``save`` wrote.

        Raises:
            UsageError: The file is missing or holds something else.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["format"] != _FORMAT:
                raise ValueError(f"expected format {_FORMAT}")
            rows = [
                Sensitivity(row["layer"], row["bits"], row["first"], row["second"])
                for row in document["layers"]
            ]
            return cls(rows, method=document["method"], loss=document["loss"])
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; measure sensitivities first") from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"{path}: not a file of sensitivities ({error})") from error
