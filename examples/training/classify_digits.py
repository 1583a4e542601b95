"""Learn to read digits, by cross-entropy: python -m examples.training.classify_digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from examples.training.data import CLASSES, SIDE, Array, Digits, digits
from examples.training.layers import convolution, dense
from examples.training.pictures import draw_grid
from examples.training.task import Feed, Figure, Recipe, Result, Task, main, run_once, train
from fixtures.builder import Builder
from onnxfold.runtime.progress import Progress

RECIPE = Recipe("sparse-softmax-cross-entropy", steps=400, learning_rate=3e-3)
BATCH = 64
_CHANNELS = 16
_SHOWN = 16


def network() -> onnx.ModelProto:
    """Two convolutions and one dense layer: digits [N, 64] to ten logits."""
    b = Builder("classify_digits", opset=20, seed=1)
    x = b.input("digits", np.float32, ["N", SIDE * SIDE])
    x = b.op("Reshape", x, b.constant("image", [-1, 1, SIDE, SIDE], np.int64))
    x = b.op("Relu", convolution(b, "first", x, 1, _CHANNELS))
    x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Relu", convolution(b, "second", x, _CHANNELS, _CHANNELS))
    x = b.op("Flatten", x)
    x = dense(b, "head", x, _CHANNELS * (SIDE // 2) ** 2, CLASSES)
    b.output(x, "logits", ["N", CLASSES])
    return b.model()


def run(folder: Path, progress: Progress) -> Result:
    """Train, measure on digits that were held out, and draw those that are read wrongly."""
    data, model = digits(), network()

    def batches(random: np.random.Generator) -> Feed:
        images, labels = data.batch(BATCH, random)
        return {"digits": images, "labels": labels}

    trained = train(model, RECIPE, batches, progress)
    before = run_once(model, {"digits": data.held_out})["logits"]
    after = trained.run({"digits": data.held_out})["logits"]
    ir.save(trained.model, folder / "digits.onnx")
    picture = folder / "digits.png"
    _draw(data, after, picture)
    figures = (
        Figure("accuracy, %", accuracy(before, data), accuracy(after, data)),
        Figure("cross-entropy, nats", _cross_entropy(before, data), _cross_entropy(after, data)),
    )
    return Result(figures, picture, RECIPE.steps, trained.seconds)


def accuracy(logits: Array, data: Digits) -> float:
    """Return how many of the digits held out are read rightly, in per cent."""
    right: Array = logits.argmax(axis=1) == data.held_out_labels
    return float(right.mean() * 100)


def _cross_entropy(logits: Array, data: Digits) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    losses: Array = log_sum - shifted[np.arange(len(shifted)), data.held_out_labels]
    return float(losses.mean())


def _draw(data: Digits, logits: Array, path: Path) -> None:
    images = data.held_out.reshape(-1, SIDE, SIDE)
    found = logits.argmax(axis=1)
    wrong = np.flatnonzero(found != data.held_out_labels)[:_SHOWN]
    right = np.flatnonzero(found == data.held_out_labels)[:_SHOWN]
    told = "  ".join(f"{data.held_out_labels[i]} as {found[i]}" for i in wrong)
    rows = {f"read rightly: {' '.join(map(str, found[right]))}": [images[i] for i in right]}
    if len(wrong):
        rows[f"read wrongly: {told}"] = [images[i] for i in wrong]
    draw_grid(rows, path)


TASK = Task("classify_digits", "Handwritten digits, by cross-entropy", run)

if __name__ == "__main__":
    raise SystemExit(main(TASK))
