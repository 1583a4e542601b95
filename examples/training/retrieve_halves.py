"""Find the lower half that belongs to an upper half: python -m examples.training.retrieve_halves.

Two towers give vectors of upper and lower halves of digits; those of one digit shall lie together.
Trained twice: against all other halves of the batch (all-pairs, both directions), and against a few
by cosine (cosine-softmax-with-negative-samples).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from examples.training.data import SIDE, Array, Digits, digits
from examples.training.layers import dense
from examples.training.pictures import draw_grid
from examples.training.task import (
    Feed,
    Figure,
    Recipe,
    Result,
    Task,
    Trained,
    main,
    run_once,
    train,
)
from fixtures.builder import Builder, Tensor
from onnxfold.runtime.progress import Progress

TOWERS = ("upper_vector", "lower_vector")
PAIRS = Recipe(
    "all-pairs{similarity=cosine temperature=0.1}", steps=600, learning_rate=2e-3, on=TOWERS
)
NEGATIVES = Recipe(
    "cosine-softmax-with-negative-samples{shift=1 negatives=20 gamma=10}",
    steps=600,
    learning_rate=2e-3,
    on=TOWERS,
)
BATCH = 128
FIRST = 10
"""A half is found where it is among so many."""
_HALF = SIDE * SIDE // 2
_WIDTH, _VECTOR = 128, 32
_SHOWN = 12


def network() -> onnx.ModelProto:
    """Two towers of two dense layers each: halves [N, 32] to vectors [N, 32]."""
    b = Builder("retrieve_halves", opset=20, seed=4)
    for name, output in zip(("upper", "lower"), TOWERS, strict=True):
        half = b.input(name, np.float32, ["N", _HALF])
        b.output(_tower(b, name, half), output, ["N", _VECTOR])
    return b.model()


def run(folder: Path, progress: Progress) -> Result:
    """Train both ways, measure on digits that were held out, and draw what is found."""
    data, model = digits(), network()

    def batches(random: np.random.Generator) -> Feed:
        images, _ = data.batch(BATCH, random)
        return _halves(images)

    pairs = train(model, PAIRS, batches, progress)
    negatives = train(model, NEGATIVES, batches, progress)
    feed = _halves(data.held_out)
    before = _ranks(run_once(model, feed))
    figures: list[Figure] = []
    for name, trained in (("all-pairs", pairs), ("cosine negatives", negatives)):
        after = _ranks(trained.run(feed))
        figures.append(Figure(f"{name}: found first, %", _found(before, 1), _found(after, 1)))
        figures.append(
            Figure(
                f"{name}: among the first {FIRST}, %", _found(before, FIRST), _found(after, FIRST)
            )
        )
    ir.save(pairs.model, folder / "towers.onnx")
    picture = folder / "halves.png"
    _draw(data, pairs, picture)
    steps = PAIRS.steps + NEGATIVES.steps
    return Result(tuple(figures), picture, steps, pairs.seconds + negatives.seconds)


def _tower(b: Builder, name: str, half: Tensor) -> Tensor:
    hidden = b.op("Relu", dense(b, f"{name}.hidden", half, _HALF, _WIDTH))
    return dense(b, f"{name}.vector", hidden, _WIDTH, _VECTOR)


def _halves(images: Array) -> Feed:
    return {"upper": images[:, :_HALF], "lower": images[:, _HALF:]}


def _similarities(outputs: Feed) -> Array:
    upper, lower = (outputs[name].astype(float) for name in TOWERS)
    upper /= np.linalg.norm(upper, axis=1, keepdims=True)
    lower /= np.linalg.norm(lower, axis=1, keepdims=True)
    return upper @ lower.T


def _ranks(outputs: Feed) -> Array:
    """How many lower halves lie nearer to each upper half than its own."""
    found = _similarities(outputs)
    return (found > np.diag(found)[:, None]).sum(axis=1)


def _found(ranks: Array, first: int) -> float:
    found: Array = ranks < first
    return float(found.mean() * 100)


def _draw(data: Digits, trained: Trained, path: Path) -> None:
    images = data.held_out.reshape(-1, SIDE, SIDE)
    nearest = _similarities(trained.run(_halves(data.held_out))).argmax(axis=1)
    upper, lower = images[:, : SIDE // 2], images[nearest][:, SIDE // 2 :]
    joined = np.concatenate([upper, lower], axis=1)
    rows = {
        "upper halves": list(upper[:_SHOWN]),
        "with the lower halves found": list(joined[:_SHOWN]),
        "the digits they were cut from": list(images[:_SHOWN]),
    }
    draw_grid(rows, path)


TASK = Task("retrieve_halves", "Which halves of digits belong together, by two towers", run)

if __name__ == "__main__":
    raise SystemExit(main(TASK))
