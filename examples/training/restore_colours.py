"""Restore the colours of a camera's mosaic, by PSNR: python -m examples.training.restore_colours.

A sensor sees one colour a pixel. The network is given the mosaic and the bilinear guess, and learns
what to add to it, from cuts of photographs; others judge it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from examples.training.data import Array
from examples.training.layers import convolution
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
from fixtures.demosaicnet import CALIBRATION, EVALUATION, mosaic_of, photograph, psnr
from onnxfold.runtime.progress import Progress

RECIPE = Recipe("psnr", steps=500, learning_rate=2e-3)
BATCH, SIDE = 8, 48
JUDGED = 256
_CHANNELS = 24
_GAIN = 5


def network() -> onnx.ModelProto:
    """Bilinear interpolation and three convolutions beside it: mosaics to images [N, 3, H, W]."""
    b = Builder("restore_colours", opset=20, seed=5)
    x = b.input("mosaic", np.float32, ["N", 3, "H", "W"])
    guess = _bilinear(b, x)
    y = b.op("Relu", convolution(b, "first", b.op("Concat", x, guess, axis=1), 6, _CHANNELS))
    y = b.op("Relu", convolution(b, "second", y, _CHANNELS, _CHANNELS))
    weight = b.constant("last.weight", np.zeros((3, _CHANNELS, 3, 3)))
    bias = b.constant("last.bias", np.zeros(3))
    y = b.op("Conv", y, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    b.output(b.op("Add", guess, y), "image", ["N", 3, "H", "W"])
    return b.model()


def run(folder: Path, progress: Progress) -> Result:
    """Train on cuts, measure on other photographs, and draw one with its errors."""
    progress.stage("fetching photographs")
    sources = [photograph(name) for name in CALIBRATION]
    judged = {name.removeprefix("photo-"): _middle(photograph(name)) for name in EVALUATION}
    model = network()

    def batches(random: np.random.Generator) -> Feed:
        cuts = np.stack([_random_cut(sources, random) for _ in range(BATCH)])
        return {"mosaic": np.stack([mosaic_of(each) for each in cuts]), "labels": cuts}

    trained = train(model, RECIPE, batches, progress)
    before = {
        name: run_once(model, {"mosaic": mosaic_of(each)[None]})["image"][0]
        for name, each in judged.items()
    }
    after = {name: _restored(trained, each) for name, each in judged.items()}
    ir.save(trained.model, folder / "restore_colours.onnx")
    picture = folder / "colours.png"
    name, image = next(iter(judged.items()))
    _draw(image, before[name], after[name], picture)
    figures = tuple(
        Figure(f"{name}: PSNR, dB", psnr(each, before[name]), psnr(each, after[name]))
        for name, each in judged.items()
    )
    return Result(figures, picture, RECIPE.steps, trained.seconds)


def _bilinear(b: Builder, x: Tensor) -> Tensor:
    """Each missing colour as the mean of its neighbours: fixed kernels, a channel each."""
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    square = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    kernels = np.stack([square, cross, square])[:, None].astype(np.float32)
    weight = b.constant("bilinear", kernels)
    return b.op("Conv", x, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=3)


def _restored(trained: Trained, image: Array) -> Array:
    return trained.run({"mosaic": mosaic_of(image)[None]})["image"][0]


def _middle(image: Array) -> Array:
    _, height, width = (int(size) for size in image.shape)
    top, left = (height - JUDGED) // 4 * 2, (width - JUDGED) // 4 * 2
    return image[:, top : top + JUDGED, left : left + JUDGED]


def _random_cut(images: list[Array], random: np.random.Generator) -> Array:
    image = images[random.integers(len(images))]
    # The mosaic begins anew with each cut: even corners only.
    sides: tuple[int, ...] = image.shape[1:]
    top, left = (2 * int(random.integers((size - SIDE) // 2)) for size in sides)
    return image[:, top : top + SIDE, left : left + SIDE]


def _draw(image: Array, before: Array, after: Array, path: Path) -> None:
    cut = (slice(None), slice(0, 128), slice(0, 128))
    rows = {
        "original, mosaic": [image[cut], mosaic_of(image)[cut]],
        f"before: {psnr(image, before):.2f} dB; error x {_GAIN}": _with_error(image, before, cut),
        f"after: {psnr(image, after):.2f} dB; error x {_GAIN}": _with_error(image, after, cut),
    }
    draw_grid(rows, path, zoom=2)


def _with_error(image: Array, found: Array, cut: tuple[slice, slice, slice]) -> list[Array]:
    return [found[cut], np.abs(np.clip(found, 0, 1) - image)[cut] * _GAIN]


TASK = Task("restore_colours", "Colours of a camera's mosaic, by PSNR", run)

if __name__ == "__main__":
    raise SystemExit(main(TASK))
