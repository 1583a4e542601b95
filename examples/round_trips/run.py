"""From each framework to int8 in one command: python -m examples.round_trips.run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.round_trips.trips import ANSWERS, DATA, HELD_OUT, TRIPS, Command, Trip
from examples.training.data import digits
from fixtures.environments import last_line
from fixtures.fetch import FetchError
from onnxfold.doctoring import diagnose
from onnxfold.passes.errors import OnnxfoldError, UsageError
from onnxfold.runtime.session import DEPLOYMENT, Session

Array = NDArray[Any]
_SECONDS = 600.0
_HEADINGS = (
    *("export error", "read rightly by the framework", "by int8", "the same answer"),
    *("kB", "faster", "integer"),
)


class TripError(RuntimeError):
    """A program failed; the message is its last line."""


@dataclass(frozen=True)
class Arrival:
    """What came of one command.

    Attributes:
        command: What was typed.
        exported: The largest difference between the framework and the exported model, as a share
            of the largest output.
        samples: On how many digits the answers are compared; none was calibrated on.
        framework_accuracy: Share of them that the framework reads rightly.
        accuracy: Share that the result reads rightly.
        agreement: Share on which both answer the same.
        source_bytes: Size of the framework's file.
        result_bytes: Size of the result.
        speedup: How many times as fast as the exported model in ONNX Runtime.
        integer_share: Share of the multiply-accumulates that are integer.
    """

    command: str
    exported: float
    samples: int
    framework_accuracy: float
    accuracy: float
    agreement: float
    source_bytes: int
    result_bytes: int
    speedup: float
    integer_share: float


def main(words: Sequence[str] | None = None) -> int:
    """Make the trips that are asked for.

    Returns:
        The exit code: 0, or that of the error that one line on standard error told about.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    names = [trip.name for trip in TRIPS]
    parser.add_argument("trips", nargs="*", metavar="TRIP", help=f"{', '.join(names)} (all)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--install",
        action="store_true",
        help="make an environment of its own for each framework that is not installed",
    )
    parser.add_argument(
        "--keep-slower",
        action="store_true",
        help="quantize all that can be, even what this machine runs faster in float",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(".onnxfold", "round_trips"),
        metavar="DIR",
        help="where models and reports go (default: %(default)s)",
    )
    options = parser.parse_args(words)
    unknown = [name for name in options.trips if name not in names]
    try:
        if unknown:
            raise UsageError(f"no trip '{unknown[0]}'; there are {', '.join(names)}")
        chosen = [trip for trip in TRIPS if not options.trips or trip.name in options.trips]
        pythons = [_python(trip, may_install=options.install) for trip in chosen]
        arrivals = [
            arrival
            for trip, python in zip(chosen, pythons, strict=True)
            for arrival in _travel(trip, python, options)
        ]
    except (FetchError, TripError) as error:
        return _fail(str(error), 1)
    except OnnxfoldError as error:
        return _fail(str(error), error.exit_code)
    if options.json:
        print(json.dumps([asdict(each) for each in arrivals], indent=2))
    else:
        _print_table(arrivals)
    return 0


def _python(trip: Trip, *, may_install: bool) -> Path:
    """An interpreter that has the framework.

    Raises:
        UsageError: There is none; says what to do.
    """
    (found,) = diagnose([trip.framework])
    if found.works:
        return Path(found.python)
    if not may_install:
        raise UsageError(
            f"{trip.name} needs {trip.framework}: pip install 'onnxfold[{trip.extra}]', or name an "
            "interpreter that has it in $ONNXFOLD_PYTHON, or say --install"
        )
    print(f"{trip.framework}: looking for its environment, or making it ...", file=sys.stderr)
    return trip.environment()


def _travel(trip: Trip, python: Path, options: argparse.Namespace) -> list[Arrival]:
    folder: Path = options.output / trip.name
    folder.mkdir(parents=True, exist_ok=True)
    _write_digits(trip, folder)
    _run([str(python), "-W", "ignore", str(trip.program), str(folder.resolve())], folder, {})
    arrivals: list[Arrival] = []
    for command in trip.commands:
        words = list(command.words)
        if options.keep_slower and command.verb == "compile":
            words.append("--keep-slower")
        if not options.json:
            print(f"$ onnxfold {' '.join(words)}", flush=True)
        program = [sys.executable, "-m", "onnxfold", *words, "--json", "--quiet"]
        out = _run(program, folder, {"ONNXFOLD_PYTHON": str(python)})
        report = json.loads(out)
        (folder / f"{command.result}.json").write_text(out, encoding="utf-8")
        arrivals.append(_arrived(trip, command, folder, report))
    return arrivals


def _write_digits(trip: Trip, folder: Path) -> None:
    """What the model is trained, calibrated and judged on: digits as it takes them."""
    data = digits()
    for name, images, labels in (
        (DATA, data.images, data.labels),
        (HELD_OUT, data.held_out, data.held_out_labels),
    ):
        samples = (images * trip.largest).reshape(-1, *trip.shape)
        arrays: dict[str, Any] = {trip.input: samples, "labels": labels}
        np.savez(folder / name, **arrays)


def _run(command: Sequence[str], folder: Path, variables: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **variables},
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise TripError(last_line(done.stderr))
    return done.stdout


def _arrived(trip: Trip, command: Command, folder: Path, report: dict[str, Any]) -> Arrival:
    with np.load(folder / HELD_OUT) as held_out, np.load(folder / ANSWERS) as answers:
        images: Array = held_out[trip.input]
        labels: Array = held_out["labels"]
        before: Array = answers[command.source].argmax(axis=1)
    after = _answers(folder / command.result, trip.input, images)
    export = report["passes"][0]["evidence"]["outputs"]
    chosen = [row["relative"] for row in report["decisions"] if row["outcome"] == "chosen"]
    return Arrival(
        command=f"onnxfold {' '.join(command.words)}",
        exported=max(each["relative_to_max"] for each in export),
        samples=len(labels),
        framework_accuracy=_rate(before == labels),
        accuracy=_rate(after == labels),
        agreement=_rate(before == after),
        source_bytes=(folder / command.source).stat().st_size,
        result_bytes=(folder / command.result).stat().st_size,
        speedup=1 / chosen[-1] if chosen else 1.0,
        integer_share=report["result"]["census"]["integer_share"],
    )


def _answers(model: Path, name: str, images: Array) -> Array:
    """The digit that each image is, by the largest score."""
    found = Session(model, DEPLOYMENT).run({name: images})
    scores: Array = next(each for each in found.values() if each.ndim == 2)
    return scores.argmax(axis=1)


def _rate(hits: NDArray[np.bool_]) -> float:
    return float(np.mean(hits))


def _print_table(arrivals: Sequence[Arrival]) -> None:
    table = Table(title="from a framework to int8", title_justify="left", header_style="bold")
    table.add_column("source")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for each in arrivals:
        table.add_row(*(Text(cell) for cell in _cells(each)))
    Console(width=None if Console().is_terminal else 110).print(table)
    print(
        f"export error: of the float export, as a share of the largest output; read rightly: of "
        f"{arrivals[0].samples} digits that nothing was calibrated on; faster: than the export"
    )


def _cells(each: Arrival) -> tuple[str, ...]:
    return (
        each.command.split()[2],
        f"{each.exported:.0e}" if each.exported else "0",
        f"{each.framework_accuracy:.1%}",
        f"{each.accuracy:.1%}",
        f"{each.agreement:.1%}",
        f"{each.source_bytes / 1e3:,.0f} -> {each.result_bytes / 1e3:,.0f}",
        f"{each.speedup:.1f}x",
        f"{each.integer_share:.0%}",
    )


def _fail(message: str, exit_code: int) -> int:
    print(f"round trips: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
