"""A line that one wrong patient cannot turn: python -m examples.training.robust_regression.

How ill 442 patients will be, by their body mass index. A few of the indices are typing errors, ten
times too large. Winsorizing clips the lowest and highest five per cent of the data to what the rest
shows, as the network's first layer; the loss is R^2, as statsmodels computes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from examples.training.data import Array, diabetes
from examples.training.pictures import draw_chart
from examples.training.task import Feed, Figure, Recipe, Result, Task, main, train
from fixtures.builder import Builder
from onnxfold.runtime.progress import Progress

RECIPE = Recipe("r-squared", steps=600, learning_rate=0.05)
CLIPPED = 0.05
"""The share of the data that is clipped at either end."""
ERRORS = 8
_COLUMN = 2
_MISTYPED = 10.0


def network(low: float, high: float, unit: tuple[float, float]) -> onnx.ModelProto:
    """A line behind a Clip: indices [N, 1] to a measure of illness [N, 1].

    Args:
        low: what smaller indices are clipped to.
        high: what larger ones are clipped to.
        unit: mean and deviation of the measure: in which units the line is learned.
    """
    b = Builder("robust_regression", opset=20)
    x = b.input("index", np.float32, ["N", 1])
    x = b.op("Clip", x, b.constant("low", low), b.constant("high", high))
    middle, half = (low + high) / 2, (high - low) / 2
    x = b.op("Div", b.op("Sub", x, b.constant("middle", middle)), b.constant("half", half))
    slope, offset = b.constant("slope", [[0.0]]), b.constant("offset", [0.0])
    x = b.op("Gemm", x, slope, offset)
    x = b.op("Mul", x, b.constant("deviation", unit[1]))
    b.output(b.op("Add", x, b.constant("mean", unit[0])), "illness", ["N", 1])
    return b.model()


def run(folder: Path, progress: Progress) -> Result:
    """Fit with and without winsorizing, and judge both on the data without the errors."""
    table, illness = diabetes()
    index = table[:, _COLUMN].astype(np.float32)[:, None]
    truth = illness.astype(np.float32)[:, None]
    spoilt = with_errors(index)
    unit = (float(truth.mean()), float(truth.std()))

    def batches(_: np.random.Generator) -> Feed:
        return {"index": spoilt, "labels": truth}

    low, high = (float(each) for each in winsorized_bounds(spoilt))
    plain = network(float(spoilt.min()), float(spoilt.max()), unit)
    clipped = network(low, high, unit)
    fits = {
        "least squares": train(plain, RECIPE, batches, progress),
        "winsorized": train(clipped, RECIPE, batches, progress),
    }
    ir.save(fits["winsorized"].model, folder / "line.onnx")
    lines = {name: each.run({"index": index})["illness"] for name, each in fits.items()}
    order = np.argsort(index[:, 0])
    picture = folder / "lines.png"
    draw_chart(
        "illness a year later, by body mass index",
        picture,
        lines={name: _points(index[order], line[order]) for name, line in lines.items()},
        dots={"patients": _points(index, truth)},
    )
    seen = {name: each.run({"index": spoilt})["illness"] for name, each in fits.items()}
    figures = (
        Figure(
            "R^2 on the data with errors",
            r_squared(truth, seen["least squares"]),
            r_squared(truth, seen["winsorized"]),
        ),
        Figure(
            "R^2 on the data without",
            r_squared(truth, lines["least squares"]),
            r_squared(truth, lines["winsorized"]),
        ),
    )
    seconds = sum(each.seconds for each in fits.values())
    return Result(figures, picture, 2 * RECIPE.steps, seconds)


def with_errors(index: Array) -> Array:
    """Return the indices, a few of them ten times too large."""
    spoilt: Array = np.array(index)
    chosen = np.random.default_rng(0).choice(len(index), ERRORS, replace=False)
    spoilt[chosen] *= _MISTYPED
    return spoilt


def winsorized_bounds(values: Array) -> tuple[float, float]:
    """Return what scipy.stats.mstats.winsorize clips to: CLIPPED of the values at either end."""
    ordered = np.sort(values.ravel())
    count = int(CLIPPED * len(ordered))
    return float(ordered[count]), float(ordered[-count - 1])


def r_squared(truth: Array, found: Array) -> float:
    """Return 1 - ssr / centered_tss, as statsmodels' rsquared of a model with a constant."""
    residual = np.square(truth.astype(float) - found).sum()
    return float(1 - residual / np.square(truth.astype(float) - truth.mean()).sum())


def _points(x: Array, y: Array) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x[:, 0], y[:, 0], strict=True)]


TASK = Task(
    "robust_regression",
    "Illness by body mass index, by R^2",
    run,
    columns=("least squares", "winsorized"),
)

if __name__ == "__main__":
    raise SystemExit(main(TASK))
