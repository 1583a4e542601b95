"""Learn to draw digits: a variational autoencoder. python -m examples.training.vae_digits.

The noise of the reparametrization is an input of the training graph, so that every step can be
repeated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from examples.training.data import SIDE, Array, Digits, digits
from examples.training.layers import dense
from examples.training.pictures import draw_grid
from examples.training.task import Feed, Figure, Recipe, Result, Task, main, run_once, train
from fixtures.builder import Builder
from onnxfold.runtime.progress import Progress

LATENTS = 8
RECIPE = Recipe(
    "vae-elbo",
    steps=3000,
    learning_rate=2e-3,
    on=("reconstruction", "mean", "log_variance"),
)
BATCH = 128
_PIXELS = SIDE * SIDE
_WIDTH = 128
_SHOWN = 16


def network() -> onnx.ModelProto:
    """An encoder of digits [N, 64] to a Gaussian of eight latents, and a decoder to logits."""
    b = Builder("vae_digits", opset=20, seed=3)
    x = b.input("digits", np.float32, ["N", _PIXELS])
    noise = b.input("noise", np.float32, ["N", LATENTS])
    hidden = b.op("Relu", dense(b, "encoder", x, _PIXELS, _WIDTH))
    mean = dense(b, "mean", hidden, _WIDTH, LATENTS)
    log_variance = dense(b, "log_variance", hidden, _WIDTH, LATENTS)
    deviation = b.op("Exp", b.op("Mul", log_variance, b.constant("half", 0.5)))
    latent = b.op("Add", mean, b.op("Mul", deviation, noise))
    hidden = b.op("Relu", dense(b, "decoder", latent, LATENTS, _WIDTH))
    b.output(dense(b, "pixels", hidden, _WIDTH, _PIXELS), "reconstruction", ["N", _PIXELS])
    b.output(mean, "mean", ["N", LATENTS])
    b.output(log_variance, "log_variance", ["N", LATENTS])
    return b.model()


def run(folder: Path, progress: Progress) -> Result:
    """Train, measure the bound on digits that were held out, and draw what the network draws."""
    data, model = digits(), network()

    def batches(random: np.random.Generator) -> Feed:
        images, _ = data.batch(BATCH, random)
        noise = random.standard_normal((BATCH, LATENTS)).astype(np.float32)
        return {"digits": images, "noise": noise, "labels": images}

    trained = train(model, RECIPE, batches, progress)
    noise = np.random.default_rng(1).standard_normal((len(data.held_out), LATENTS))
    feed: Feed = {"digits": data.held_out, "noise": noise.astype(np.float32)}
    before, after = run_once(model, feed), trained.run(feed)
    ir.save(trained.model, folder / "vae.onnx")
    picture = folder / "vae.png"
    _draw(data, before, after, picture)
    figures = (
        Figure("negative ELBO, nats a digit", _bound(before, data), _bound(after, data)),
        Figure("mean error of a pixel", _error(before, data), _error(after, data)),
    )
    return Result(figures, picture, RECIPE.steps, trained.seconds)


def _bound(outputs: Feed, data: Digits) -> float:
    logits, mean, log_variance = (outputs[name].astype(float) for name in RECIPE.on)
    bernoulli = (np.logaddexp(0, logits) - logits * data.held_out).sum(axis=1)
    divergence = (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(axis=1) / 2
    bound: Array = bernoulli + divergence
    return float(bound.mean())


def _error(outputs: Feed, data: Digits) -> float:
    return float(np.abs(_pixels(outputs) - data.held_out).mean())


def _pixels(outputs: Feed) -> Array:
    return 1 / (1 + np.exp(-outputs["reconstruction"]))


def _draw(data: Digits, before: Feed, after: Feed, path: Path) -> None:
    rows = {
        "held out": data.held_out,
        "restored, before": _pixels(before),
        "restored, after": _pixels(after),
    }
    shown = {name: list(each[:_SHOWN].reshape(-1, SIDE, SIDE)) for name, each in rows.items()}
    draw_grid(shown, path)


TASK = Task("vae_digits", "Digits by a variational autoencoder", run)

if __name__ == "__main__":
    raise SystemExit(main(TASK))
