"""What a person sees: tables on stdout, progress on stderr when it is a terminal."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

_PIPED_WIDTH = 160
_NARROWEST = 40
_KEPT = 30
_LONG_WORD = re.compile(rf"\S{{{2 * _KEPT + 4},}}")
_STAGE_COLUMN = Column(max_width=36, no_wrap=True, overflow="ellipsis")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_line(text: str) -> None:
    """One line on stdout, as it is."""
    sys.stdout.write(text + "\n")


def print_item(text: str, *, first: str, rest: int) -> None:
    """One item of a list on stdout; as wide as the terminal, or as it is where there is none.

    Args:
        text: The item; names in it are never broken, but very long ones lose their middles.
        first: What stands before its first line.
        rest: Columns that its other lines are indented by.
    """
    text = shortened(text)
    if not sys.stdout.isatty():
        print_line(f"{first}{text}")
        return
    lines = textwrap.wrap(
        text,
        max(Console().width, _NARROWEST),
        initial_indent=first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print_line("\n".join(lines))


def shortened(text: str) -> str:
    """``text`` with the middles of its longest words left out: some exporters join many names."""
    return _LONG_WORD.sub(lambda word: f"{word[0][:_KEPT]}...{word[0][-_KEPT:]}", text)


def print_error(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"onnxfold: {' '.join(text.split())}\n")


def print_table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Collection[int] = (),
) -> None:
    """A table on stdout.

    Args:
        title: Stands above it.
        header: Column titles.
        rows: Cells; shown as text, never read as markup.
        numbers: The columns that are aligned to the right, counted from 0.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        justify = "right" if index in numbers else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    # Piped output has no width of its own: a narrow default would fold every name.
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)
    with console.capture() as capture:
        console.print(Text(title, style="bold"))
        console.print(table)
    # The box pads every line, and begins with an empty one.
    lines = [line.rstrip() for line in capture.get().splitlines()]
    sys.stdout.write("\n".join([lines[0], *lines[2:]]) + "\n")


class ProgressBars(AbstractContextManager["ProgressBars"]):
    """Shows the stages of long work on stderr; silent where stderr is no terminal.

    What a user's own script prints meanwhile goes to stderr: stdout is for results.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(finished_text="*"),
            TextColumn("{task.description}", table_column=_STAGE_COLUMN),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self._redirection = redirect_stdout(sys.stderr)
        self._task: Any = None

    def __enter__(self) -> ProgressBars:
        self._redirection.__enter__()
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
        self._redirection.__exit__(kind, error, trace)

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
