"""Writing a report into a folder: for machines, for people, and its picture."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.places import check_kind
from onnxfold.runtime.report.frontier import draw, points
from onnxfold.runtime.report.markdown import FRONTIER, to_markdown


def write_report(report: dict[str, Any], directory: Path) -> None:
    """Write ``report.json``, ``report.md`` and, where there are trades, ``frontier.svg``.

    Each is written all at once.

    Raises:
        UsageError: The folder cannot be made or written to.
    """
    write_text(directory / "report.json", json.dumps(report, indent=2, allow_nan=True) + "\n")
    write_text(directory / "report.md", to_markdown(report))
    candidates = points(report["decisions"])
    if len(candidates) > 1:
        write_text(directory / FRONTIER, draw(candidates))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to a file beside ``path`` and rename it, so that no half file is ever seen.

    Raises:
        UsageError: The place is not writable.
    """
    check_kind(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder takes what is left of a write that failed with it.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_text(text, encoding="utf-8")
            os.replace(whole, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another place") from error
