"""Every loss by name, imported only when it is asked for; and losses in a user's own file."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.declaration import Loss
from onnxfold.passes.script import ScriptReference
from onnxfold.passes.suggest import did_you_mean

LOSSES: dict[str, str] = {
    "all-pairs": "all_pairs",
    "bce-with-logits": "bce_with_logits",
    "cosine-distance-with-negative-samples": "cosine_distance_with_negative_samples",
    "cosine-softmax-with-negative-samples": "cosine_softmax_with_negative_samples",
    "distillation": "distillation",
    "focal": "focal",
    "huber": "huber",
    "kl-divergence": "kl_divergence",
    "l1": "l1",
    "mse": "mse",
    "mutual-information": "mutual_information",
    "normalized-mutual-information": "normalized_mutual_information",
    "psnr": "psnr",
    "r-squared": "r_squared",
    "semi-hard-triplet": "semi_hard_triplet",
    "softmax-cross-entropy": "softmax_cross_entropy",
    "sparse-softmax-cross-entropy": "sparse_softmax_cross_entropy",
    "sparse-softmax-focal": "sparse_softmax_focal",
    "sqnr": "sqnr",
    "ssim": "ssim",
    "triplet": "triplet",
    "vae-elbo": "vae_elbo",
    "vae-kl": "vae_kl",
}

ALSO_CALLED: dict[str, str] = {
    "bce": "bce-with-logits",
    "cross-entropy": "sparse-softmax-cross-entropy",
    "dssm": "cosine-softmax-with-negative-samples",
    "info-nce": "all-pairs",
    "kl": "kl-divergence",
    "l2": "mse",
    "mae": "l1",
    "nmi": "normalized-mutual-information",
    "r2": "r-squared",
    "smooth-l1": "huber",
    "vae": "vae-elbo",
}
"""Suggested to who asks for a loss by these names."""


@contextmanager
def opened_loss(name: str) -> Generator[Loss]:
    """The loss called ``name``, or the one that ``file.py:function`` declares.

    What a user's function raises in the context becomes a UsageError that names its line.

    Raises:
        UsageError: There is no such loss; names the nearest one.
    """
    if name in LOSSES:
        yield registered_loss(name)
        return
    if name.endswith(".py"):
        raise UsageError(f"loss '{name}' names no function: write {name}:FUNCTION")
    if ":" not in name:
        raise UsageError(f"unknown loss '{name}'{_suggestion(name)}")
    try:
        script = ScriptReference.from_text(name)
    except ValueError as error:
        raise UsageError(f"loss {error}") from None
    with script.running() as function:
        if not isinstance(function, Loss):
            raise UsageError(f"{name} is no loss: decorate it with @onnxfold.passes.loss.loss(...)")
        yield function


def registered_loss(name: str) -> Loss:
    """A loss of this package."""
    module = importlib.import_module(f"onnxfold.passes.loss.losses.{LOSSES[name]}")
    (found,) = (each for each in vars(module).values() if _is_called(each, name))
    return found


def _is_called(value: object, name: str) -> bool:
    return isinstance(value, Loss) and value.name == name


def _suggestion(name: str) -> str:
    called = name.lower().replace("_", "-")
    known = ALSO_CALLED.get(called, called if called in LOSSES else "")
    if known:
        return f"; did you mean '{known}'?"
    return did_you_mean(name, LOSSES) or f" (there are {', '.join(LOSSES)}, and file.py:function)"
