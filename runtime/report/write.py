"""Writing a report into a folder: for machines, for people, and its pictures."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.places import check_kind
from onnxfold.runtime.report.blocks import Block, Picture
from onnxfold.runtime.report.markdown import to_markdown
from onnxfold.runtime.report.page import to_html


def write_report(document: dict[str, Any], blocks: Sequence[Block], directory: Path) -> None:
    """Write ``report.json``, ``report.md`` with its pictures beside it, and ``report.html``.

    Each is written all at once.

    Args:
        document: What machines read.
        blocks: What it says to people.
        directory: Made where it is not there.

    Raises:
        UsageError: The folder cannot be made or written to.
    """
    write_text(directory / "report.json", json.dumps(document, indent=2, allow_nan=True) + "\n")
    for block in blocks:
        if isinstance(block, Picture):
            write_text(directory / block.file, block.svg)
    write_text(directory / "report.md", to_markdown(blocks))
    write_text(directory / "report.html", to_html(blocks))


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
