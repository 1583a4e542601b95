"""What every example does: fetch a model, build data, compile, evaluate, print one table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxfold
from examples.evaluation import evaluate, print_table
from examples.samples import Samples, save_sets
from fixtures.fetch import FetchError, fetch
from onnxfold.console import ProgressBars
from onnxfold.passes.errors import OnnxfoldError

Sets = tuple[Samples, Samples]


@dataclass(frozen=True)
class Example:
    """A real model with a source of data.

    Attributes:
        name: the folder its files go to, inside the output folder.
        title: what stands above the table.
        model: the model's name in fixtures/models.json.
        build: makes the calibration and the evaluation set.
    """

    name: str
    title: str
    model: str
    build: Callable[[], Sets]


def main(example: Example, words: Sequence[str] | None = None) -> int:
    """Run an example from the command line.

    Args:
        example: what to run.
        words: what follows the program's name; ``sys.argv`` by default.

    Returns:
        The exit code: 0, or that of the error that one line on standard error told about.
    """
    parser = argparse.ArgumentParser(description=example.title)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(".onnxfold", example.name),
        metavar="DIR",
        help="where model, report and data go (default: %(default)s)",
    )
    options = parser.parse_args(words)
    try:
        return _run(example, options.output, as_json=options.json)
    except FetchError as error:
        return _fail(str(error), 1)
    except OnnxfoldError as error:
        return _fail(str(error), error.exit_code)
    except (OSError, ValueError) as error:
        return _fail(str(error), 2)


def _run(example: Example, folder: Path, *, as_json: bool) -> int:
    with ProgressBars() as progress:
        progress.stage(f"fetching {example.model}")
        model = fetch(example.model)
        progress.stage("building data")
        calibration, evaluation = example.build()
        save_sets(folder, calibration, evaluation)
        outcome = onnxfold.compile(model, data=folder / "calibration.npz", progress=progress)
        compiled = folder / f"{example.name}.compiled.onnx"
        outcome.save(compiled)
        outcome.save_report(folder / "report")
        progress.stage("evaluating")
        reasons = [each for island in outcome.report.islands for each in island.reasons]
        islands = [(each.op_type, each.reason) for each in reasons for _ in each.nodes]
        measured = evaluate(model, compiled, evaluation.inputs, evaluation.labels, islands)
    if as_json:
        print(json.dumps({"model": str(compiled), **measured.to_json()}, indent=2))
        return 0
    print_table(example.title, measured)
    print(f"{compiled} and {folder / 'report' / 'report.html'} written")
    return 0


def _fail(message: str, exit_code: int) -> int:
    print(f"demo: {' '.join(message.split())}", file=sys.stderr)
    return exit_code
