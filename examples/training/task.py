"""What every task does: add a loss and an optimizer to a network, train it, say what that gave."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import onnxfold
from fixtures.fetch import FetchError
from onnxfold.console import ProgressBars
from onnxfold.passes.errors import OnnxfoldError
from onnxfold.runtime.progress import Progress
from onnxfold.runtime.session import DEPLOYMENT, Session
from onnxfold.runtime.training.trainer import Trainer

Array = NDArray[Any]
Feed = dict[str, Array]
Batches = Callable[[np.random.Generator], Feed]


@dataclass(frozen=True)
class Figure:
    """One thing that was measured before and after training.

    Attributes:
        name: what, with its unit.
        before: of the network as it was drawn, or of what it is compared with.
        after: of the trained one.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        loss: the loss with its options.
        on: what the loss reads, where that is not the only output.
        optimizer: sgd, momentum, adam, adamw or adagrad.
        learning_rate: of the optimizer.
        steps: batches.
    """

    loss: str
    steps: int
    learning_rate: float
    on: tuple[str, ...] = ()
    optimizer: str = "adam"


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: the network, without loss and optimizer.
        losses: the loss of each step.
        seconds: how long training took.
    """

    model: ir.Model
    losses: tuple[float, ...]
    seconds: float

    def run(self, feed: Feed) -> dict[str, Array]:
        """Return the outputs of the network."""
        return Session(self.model, DEPLOYMENT).run(feed)


@dataclass(frozen=True)
class Result:
    """What a task found.

    Attributes:
        figures: what was measured.
        picture: a PNG.
        steps: batches trained on.
        seconds: how long training took.
    """

    figures: tuple[Figure, ...]
    picture: Path
    steps: int
    seconds: float


@dataclass(frozen=True)
class Task:
    """A network, data, and what is to be learned.

    Attributes:
        name: the folder its files go to, inside the output folder.
        title: what stands above the table.
        run: does it all; given the folder to write into, and somebody to tell.
        columns: what stands above the figures.
    """

    name: str
    title: str
    run: Callable[[Path, Progress], Result]
    columns: tuple[str, str] = ("before", "after")


def train(
    model: onnx.ModelProto, recipe: Recipe, batches: Batches, progress: Progress, seed: int = 0
) -> Trained:
    """Train ``model`` in onnxruntime.

    Args:
        model: the network; its weights are where training begins.
        recipe: how.
        batches: draws one feed: inputs and labels.
        progress: told how far it is.
        seed: of the generator that ``batches`` is given.
    """
    graph = onnxfold.inject_loss(model, recipe.loss, on=recipe.on, train=recipe.optimizer)
    trainer = Trainer(graph.model, learning_rate=recipe.learning_rate)
    random = np.random.default_rng(seed)
    progress.stage("training", recipe.steps)
    losses: list[float] = []
    started = time.perf_counter()
    for _ in range(recipe.steps):
        losses.append(float(trainer.step(batches(random))))
        progress.advance()
    return Trained(trainer.export(), tuple(losses), time.perf_counter() - started)


def run_once(model: onnx.ModelProto, feed: Feed) -> dict[str, Array]:
    """Return the outputs of a network that nobody has trained yet."""
    return Session(model, DEPLOYMENT).run(feed)


def smooth(losses: Sequence[float], width: int = 20) -> list[tuple[float, float]]:
    """Return points of a curve: the mean of ``width`` losses at a time."""
    means = [np.mean(losses[i : i + width]) for i in range(0, len(losses), width)]
    return [(index * width, float(mean)) for index, mean in enumerate(means)]


def main(task: Task, words: Sequence[str] | None = None) -> int:
    """Run a task from the command line.

    Args:
        task: what to run.
        words: what follows the program's name; ``sys.argv`` by default.

    Returns:
        The exit code: 0, or that of the error that one line on standard error told about.
    """
    parser = argparse.ArgumentParser(description=task.title)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(".onnxfold", task.name),
        metavar="DIR",
        help="where the model and the picture go (default: %(default)s)",
    )
    options = parser.parse_args(words)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with ProgressBars() as progress:
            result = task.run(options.output, progress)
    except (FetchError, OnnxfoldError, OSError) as error:
        print(f"{task.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    if options.json:
        print(json.dumps(asdict(result), indent=2, default=str))
    else:
        _print(task, result)
    return 0


def _print(task: Task, result: Result) -> None:
    table = Table("", *task.columns, title=task.title, title_justify="left")
    for each in result.figures:
        table.add_row(each.name, f"{each.before:.4g}", f"{each.after:.4g}")
    console = Console()
    console.print(table)
    console.print(f"{result.steps} steps in {result.seconds:.1f} s; {result.picture} written")
