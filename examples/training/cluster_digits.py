"""Sort digits into heaps, by mutual information: python -m examples.training.cluster_digits.

The labels say only which digits belong together: normalized mutual information does not mind what
a heap is called, or how many there are. The network ends in a Softmax, whose probabilities are what
the loss reads. It is given twice as many heaps as there are digits: two heaps of one digit cost
little and can merge, while one heap of two digits, once it is there, stays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from examples.training.data import CLASSES, SIDE, Array, Digits, digits
from examples.training.layers import dense
from examples.training.pictures import draw_grid
from examples.training.task import Feed, Figure, Recipe, Result, Task, main, run_once, train
from fixtures.builder import Builder
from onnxfold.runtime.progress import Progress

RECIPE = Recipe("normalized-mutual-information", steps=800, learning_rate=1e-3)
BATCH = 256
HEAPS = 2 * CLASSES
_WIDTH = 64
_SHOWN = 16


def network() -> onnx.ModelProto:
    """Two dense layers: digits [N, 64] to the probabilities of twenty heaps."""
    b = Builder("cluster_digits", opset=20, seed=2)
    x = b.input("digits", np.float32, ["N", SIDE * SIDE])
    x = b.op("Relu", dense(b, "hidden", x, SIDE * SIDE, _WIDTH))
    # Larger weights than elsewhere: heaps that differ from the start are less likely to merge.
    weight = b.weight("head.weight", _WIDTH, HEAPS, scale=1.0)
    x = b.op("Gemm", x, weight, b.constant("head.bias", np.zeros(HEAPS)))
    b.output(b.op("Softmax", x), "heaps", ["N", HEAPS])
    return b.model()


def run(folder: Path, progress: Progress) -> Result:
    """Train, measure on digits that were held out, and draw the heaps."""
    data, model = digits(), network()

    def batches(random: np.random.Generator) -> Feed:
        images, labels = data.batch(BATCH, random)
        return {"digits": images, "labels": labels}

    trained = train(model, RECIPE, batches, progress)
    before = run_once(model, {"digits": data.held_out})["heaps"].argmax(axis=1)
    after = trained.run({"digits": data.held_out})["heaps"].argmax(axis=1)
    ir.save(trained.model, folder / "heaps.onnx")
    picture = folder / "heaps.png"
    _draw(data, after, picture)
    truth = data.held_out_labels
    figures = (
        Figure(
            "normalized mutual information",
            normalized_mutual_information(truth, before),
            normalized_mutual_information(truth, after),
        ),
        Figure("purity, %", _purity(truth, before), _purity(truth, after)),
    )
    return Result(figures, picture, RECIPE.steps, trained.seconds)


def normalized_mutual_information(truth: Array, found: Array) -> float:
    """Return 2 I(truth; found) / (H(truth) + H(found)), in [0, 1]; scikit-learn's default."""
    joint = _contingency(truth, found) / len(truth)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    mutual = _entropy(rows) + _entropy(columns) - _entropy(joint)
    return float(2 * mutual / max(_entropy(rows) + _entropy(columns), 1e-12))


def _contingency(truth: Array, found: Array) -> Array:
    counts = np.zeros((CLASSES, HEAPS))
    np.add.at(counts, (truth, found), 1)
    return counts


def _entropy(probabilities: Array) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())


def _purity(truth: Array, found: Array) -> float:
    return float(_contingency(truth, found).max(axis=0).sum() / len(truth) * 100)


def _draw(data: Digits, found: Array, path: Path) -> None:
    images = data.held_out.reshape(-1, SIDE, SIDE)
    heaps = {heap: np.flatnonzero(found == heap) for heap in range(HEAPS)}
    rows = {
        f"heap {heap}: {len(members)} digits": [images[i] for i in members[:_SHOWN]]
        for heap, members in heaps.items()
        if len(members)
    }
    draw_grid(rows, path, zoom=3)


TASK = Task("cluster_digits", "Digits in heaps, by normalized mutual information", run)

if __name__ == "__main__":
    raise SystemExit(main(TASK))
