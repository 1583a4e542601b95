"""Every loss, and its gradient, on inputs at which formulas break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.loss.build import LossTensor, build_loss, describe_loss, parse_losses
from onnxfold.passes.loss.registry import LOSSES
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)
INFINITE = {"psnr", "sqnr"}  # of equal tensors
NEEDS_A_BATCH = {"cosine-distance-with-negative-samples", "cosine-softmax-with-negative-samples"}
EXPONENTIAL = {"vae-kl", "vae-elbo"}  # e^1000 is no float32

INPUTS: dict[str, Callable[[tuple[int, ...]], Array]] = {
    "zeros": np.zeros,
    "ones": np.ones,
    "thousands": lambda shape: np.where(RANDOM.random(shape) < 0.5, 1000.0, -1000.0),
    "nearly zero": lambda shape: RANDOM.standard_normal(shape) * 1e-30,
    "batch of one": lambda shape: RANDOM.random((1, *shape[1:])),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_neither_a_loss_nor_its_gradient_is_no_number(
    name: str, kind: str, evaluate: Callable[..., dict[str, Array]]
) -> None:
    known = describe_loss(parse_losses(name)[0])
    x = INPUTS[kind]((4, 1, 12, 12) if name in ("psnr", "ssim") else (4, 4)).astype(np.float32)
    if known.scores == "probabilities":
        x = np.eye(4, dtype=np.float32)[: len(x)]
    dims = ("N", *x.shape[1:])
    tensors = [LossTensor(each, ir.DataType.FLOAT, dims) for each in known.tensors]
    built = build_loss(parse_losses(name)[0], tensors)
    steps = parse_passes(f"add-gradient{{wrt={','.join(known.tensors)}}},lower-gradient")
    Pipeline(tuple(steps)).run(built.model)

    labels = np.arange(len(x)) % 2
    data = {each: labels if each == "labels" else x for each in built.data}
    outputs = evaluate(built.model, dict.fromkeys(known.tensors, x) | data)
    if name in NEEDS_A_BATCH and len(x) == 1:
        assert np.isnan(outputs["loss"]).all()
        return
    assert not any(np.isnan(each).any() for each in outputs.values())
    assert name in INFINITE | EXPONENTIAL or np.isfinite(outputs["loss"]).all()
    if name not in EXPONENTIAL or kind != "thousands":
        assert all(np.isfinite(outputs[f"grad_{each}"]).all() for each in known.tensors)
