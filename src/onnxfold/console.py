"""What a person sees: tables on stdout, progress on stderr when it is a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_line(text: str) -> None:
    """One line on stdout, as it is."""
    sys.stdout.write(text + "\n")


def print_error(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"onnxfold: {' '.join(text.split())}\n")


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, numeric_from: int = 1
) -> None:
    """A table on stdout.

    Args:
        title: Stands above it.
        header: Column titles.
        rows: Cells; shown as text, never read as markup.
        numeric_from: The first column that is aligned to the right.
    """
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, name in enumerate(header):
        justify = "right" if index >= numeric_from else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    # Piped output has no width of its own: a narrow default would fold every name.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


class ProgressBars(AbstractContextManager["ProgressBars"]):
    """Shows the stages of long work on stderr; silent where stderr is no terminal."""

    def __init__(self, *, enabled: bool = True) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(finished_text="*"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; the one before it is complete."""
        self._finish()
        self._task = self._bars.add_task(name, total=total)

    def advance(self) -> None:
        """One step is done."""
        if self._task is not None:
            self._bars.advance(self._task)

    def _finish(self) -> None:
        if self._task is None:
            return
        task = self._bars.tasks[-1]
        self._bars.update(self._task, total=task.completed or 1, completed=task.completed or 1)
