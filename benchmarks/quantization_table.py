"""The table of ``bench_quantization``: its rows, the limits they are held to, and its file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

OURS, FLOAT = "onnxfold", "float"

LEAST_SPEED = 0.97
LEAST_GAIN_DB = 3.0
UNTOUCHED_DB = 100.0
"""From here on a model was left in float."""


@dataclass(frozen=True)
class Row:
    """One model of one tool; NaN where there is no figure.

    Attributes:
        tool: what made it; "float" for the original.
        problem: why there is no valid model; empty if there is one.
        seconds: what making it took, of the processor's time in all threads.
        metric: the task metric.
        kept: whether the metric is within the limits.
        speed: speed-up over float on one thread.
        deployed: speed-up over float as deployed; NaN where other work keeps the machine busy.
        sqnr: dB, of the worst output.
        size: bytes.
        note: what else the tool said.
        flags: the limits broken; of onnxfold's rows only.
    """

    tool: str
    problem: str = ""
    seconds: float = math.nan
    metric: float = math.nan
    kept: bool = False
    speed: float = math.nan
    deployed: float = math.nan
    sqnr: float = math.nan
    size: int = 0
    note: str = ""
    flags: tuple[str, ...] = ()


@dataclass
class Table:
    """Rows by model, kept in a file from model to model: a run that ends early has its part there.

    Attributes:
        commit: what was measured.
        tools: by which tools.
        rows: float's first.
        path: the file.
    """

    commit: str
    tools: tuple[str, ...]
    path: Path
    rows: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])

    def resume(self) -> None:
        """Take over the rows in the file, where they are of the same commit and tools."""
        if not self.path.is_file():
            return
        stored = json.loads(self.path.read_text(encoding="utf-8"))
        if (stored["commit"], tuple(stored["tools"])) != (self.commit, self.tools):
            return
        for name, rows in stored["rows"].items():
            self.rows[name] = [_row(figures) for figures in rows]

    def add(self, name: str, rows: Sequence[Row]) -> None:
        """Take the rows of a model, and write the file anew."""
        self.rows[name] = list(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")
        os.replace(partial, self.path)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "benchmark": "quantization",
            "commit": self.commit,
            "tools": list(self.tools),
            "rows": {name: [asdict(row) for row in rows] for name, rows in self.rows.items()},
        }


def _row(figures: Mapping[str, Any]) -> Row:
    values = dict(figures)
    values["flags"] = tuple(figures["flags"])
    return Row(**values)


def checkout() -> str:
    """The commit of this checkout, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return done.stdout.strip() or "unknown"


def flags_of(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """The limits that a row breaks, given all rows of its model."""
    if row.tool != OURS:
        return ()
    if row.problem:
        return ("no valid model",)
    flags: list[str] = []
    if not row.kept:
        flags.append("metric")
    if row.speed < LEAST_SPEED or row.deployed < LEAST_SPEED:
        flags.append("slower than float")
    others = [each for each in rows if each.tool not in (OURS, FLOAT) and not each.problem]
    best = max(
        (each for each in others if each.sqnr < UNTOUCHED_DB),
        key=lambda each: each.sqnr,
        default=None,
    )
    if best is not None and row.sqnr < best.sqnr + LEAST_GAIN_DB:
        flags.append(f"SQNR: {best.tool} {best.sqnr:.1f}")
    if best is not None and best.kept and row.speed < LEAST_SPEED * best.speed:
        flags.append(f"speed: {best.tool} {best.speed:.2f}")
    return tuple(flags)


def print_head(commit: str) -> None:
    """What the columns are."""
    print(f"commit {commit}")
    print(
        f"  {'tool':12s}{'CPU s':>7s} {'metric':>9s} {'speed':>7s} {'deployed':>9s} "
        f"{'SQNR dB':>7s} {'MB':>8s}"
    )


def print_rows(name: str, rows: Sequence[Row]) -> None:
    """One model's part of the table."""
    print(f"{name}: {rows[0].note}")
    for row in rows:
        head = f"  {row.tool:12s}{_figure(row.seconds, '7.1f')}"
        if row.problem:
            print(f"{head}  {row.problem[:110]}")
            continue
        flags = "  ".join(f"[{each}]" for each in row.flags)
        note = "" if row.tool == FLOAT else row.note[:100]
        speeds = f"{row.speed:7.2f} {_figure(row.deployed, '9.2f')}"
        figures = f"{row.metric:9.4f} {speeds} {row.sqnr:7.1f} {row.size / 1e6:8.2f}"
        print(f"{head} {figures}  {flags}  {note}".rstrip())
    sys.stdout.flush()


def print_summary(table: Mapping[str, Sequence[Row]]) -> None:
    """What holds over all models."""
    tools = dict.fromkeys(row.tool for rows in table.values() for row in rows)
    for tool in tools:
        mine = [row for rows in table.values() for row in rows if row.tool == tool]
        valid = [row for row in mine if not row.problem]
        good = [row for row in valid if row.kept and row.speed >= LEAST_SPEED]
        speed = float(np.exp(np.mean(np.log([row.speed for row in valid])))) if valid else math.nan
        print(
            f"{tool:12s} valid {len(valid)}/{len(mine)}, metric kept and not slower "
            f"{len(good)}/{len(mine)}, geometric mean of the speed-ups {speed:.2f}"
        )
    flagged = sum(1 for rows in table.values() for row in rows if row.flags)
    print(f"rows of {OURS} with a flag: {flagged}")


def _figure(value: float, form: str) -> str:
    return " " * int(form.partition(".")[0]) if math.isnan(value) else format(value, form)
