"""The plan: every measured choice of a compilation, to be replayed without measuring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxfold.passes.base import Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.registry import parse_pass
from onnxfold.passes.spec import parse_pipeline, print_pass, rebased, save_values
from onnxfold.runtime.report.report import package_versions
from onnxfold.runtime.report.write import write_text

_FORMAT = "onnxfold-plan"
_VERSION = 1
NOT_HELD = "does not hold where it is proven"
"""The outcome of what was chosen, where another model takes its place."""


@dataclass(frozen=True)
class Plan:
    """The passes that were chosen, calibration ranges included, and what they were chosen for.

    Attributes:
        model_sha256: Of the model the plan was made for.
        passes: The pipeline, in order.
        decisions: What was measured; for people, not read on replay.
        in_float: Why nodes were left in float, by name; for people as well.
    """

    model_sha256: str
    passes: tuple[Pass, ...]
    decisions: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    in_float: dict[str, str] = field(default_factory=dict[str, str], compare=False)

    def instead(self, name: str, passes: tuple[Pass, ...], in_float: dict[str, str]) -> Plan:
        """The plan of a float model, by which it is replaced where its result does not hold.

        Args:
            name: Of that model among the decisions; the original is none of them.
            passes: What makes it.
            in_float: Why nodes are left in float there.
        """
        rows: list[dict[str, Any]] = []
        for row in self.decisions:
            fallen = str(row["outcome"]).startswith("chosen")
            outcome = "chosen" if row["candidate"] == name else NOT_HELD if fallen else None
            rows.append(row if outcome is None else {**row, "outcome": outcome})
        return Plan(self.model_sha256, passes, tuple(rows), in_float)

    def save(self, path: Path) -> None:
        """Write the plan, and large arrays it needs as files beside it.

        Raises:
            UsageError: The place is not writable.
        """
        texts: list[str] = []
        files: list[str] = []
        for index, pass_ in enumerate(self.passes):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                printable, written = save_values(pass_, path.parent, f"{path.stem}-{index}")
            except OSError as error:
                raise UsageError(f"cannot write beside {path}: {error.strerror}") from error
            texts.append(print_pass(printable))
            files.extend(written)
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "versions": package_versions(),
            "model_sha256": self.model_sha256,
            "passes": texts,
            "files": files,
            "decisions": list(self.decisions),
            "in_float": self.in_float,
        }
        write_text(path, json.dumps(document, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read what ``save`` wrote.

        Raises:
            UsageError: The file is missing, no plan, or names an unknown pass or option.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path}: no such plan file") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: not a plan file ({error})") from error
        if not isinstance(document, dict):
            raise UsageError(f"{path}: not a plan file (no JSON object)")
        return cls._from_document(path, document)  # pyright: ignore[reportUnknownArgumentType]

    @classmethod
    def _from_document(cls, path: Path, document: dict[str, Any]) -> Plan:
        if document.get("format") != _FORMAT or document.get("version") != _VERSION:
            raise UsageError(f"{path}: not an {_FORMAT} of version {_VERSION}")
        try:
            texts: Sequence[str] = document["passes"]
            files: Sequence[str] = document.get("files", ())
            specs = parse_pipeline(",".join(texts))
            passes = tuple(parse_pass(rebased(each, path.parent, files)) for each in specs)
            decisions, in_float = tuple(document["decisions"]), dict(document["in_float"])
            return cls(str(document["model_sha256"]), passes, decisions, in_float)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: incomplete plan file ({error})") from error

    def check_model(self, sha256: str) -> None:
        """Refuse to replay on another model than the plan was made for.

        Raises:
            UsageError: The hashes differ.
        """
        if sha256 != self.model_sha256:
            raise UsageError(
                f"the plan was made for another model (sha256 {self.model_sha256[:12]}..., this "
                f"one is {sha256[:12]}...); leave out --plan"
            )
