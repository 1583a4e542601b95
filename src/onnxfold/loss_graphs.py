"""``inject_loss``: losses, gradients and optimizers in a model, verified like every rewrite."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.exporting import open_model
from onnxfold.loss_verdicts import loss_text
from onnxfold.outcome import Model, Outcome, Work, compared
from onnxfold.passes.base import Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.build import describe_loss, parse_losses
from onnxfold.passes.loss.plan import LABELS, without_place
from onnxfold.passes.loss.record import read_record
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_pass
from onnxfold.passes.spec import PassSpec, parse_pipeline
from onnxfold.runtime.compiler.verified import run_verified
from onnxfold.runtime.progress import Progress, Silent
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.verify.labels import check_labels

_GRADIENT_OPSET = 18
_WEIGHTS = "weights"
_BATCH = 4
"""Samples in a generated feed: what compares samples with each other says nothing of one."""


def inject_loss(
    model: Model,
    loss: str | Sequence[str],
    *,
    on: str | Sequence[str] = (),
    labels: str = LABELS,
    weight: float | Sequence[float] = (),
    grad: bool | str | Sequence[str] = False,
    train: str | None = None,
    trainable: str | Sequence[str] = (),
    data: object = None,
    progress: Progress | None = None,
) -> Outcome:
    """Add losses to a model as further outputs; on request gradients and an optimizer as well.

    Each loss is an output ``loss_<name>``, their weighted sum the output ``loss``. The model's own
    outputs stay what they are, bit for bit; what was added is held against float64.

    Args:
        model: The model.
        loss: Losses with their options: ``mse``, ``["mse", "psnr{max-value=255}"]``. A loss may
            say itself what it is about: ``vae-kl{on=mean,log-variance weight=0.1}``.
        on: Outputs, or tensors inside, that the losses are about; by default the only output of
            real numbers, or the logits before its softmax where the loss takes logits.
        labels: Name of the input with the right answers. An input that the model has already
            serves as well.
        weight: The share of each loss in the sum; 1 by default.
        grad: Add the gradients of ``loss`` by ``weights``, by ``inputs``, or by the tensors whose
            whole names match a regular expression; True is ``weights``.
        train: Add one step of this optimizer: ``sgd``, ``momentum``, ``adam``, ``adamw`` or
            ``adagrad``, with options in braces: ``adam{learning-rate=0.01}``.
        trainable: Names of the weights to train, or regular expressions; all by default.
        data: What to verify on; arrays beside the inputs are the labels, which it has to hold.
            Both are generated if None.
        progress: Told how far it is.

    Raises:
        UsageError: A loss, an option or a tensor is unknown or does not fit, the model has a loss
            already, an operator has no gradient, or a label in the data is missing or no class.
        NotEquivalentError: An output changed, or a loss is not what float64 says.
        InvalidModelError: The model is missing, broken or hostile.
    """
    original = open_model(model, progress)
    text = loss_text(loss)
    if trainable and train is None:
        raise UsageError("trainable is for train: say which optimizer")
    given = {
        "loss": (text,),
        "on": _several(on),
        "labels": (labels,),
        "weight": tuple(map(str, [weight] if isinstance(weight, int | float) else weight)),
    }
    options = {key: values for key, values in given.items() if values}
    inject = parse_pass(PassSpec("inject-loss", options))
    wanted = _wanted_gradients(grad, train, _several(trainable))
    passes = [*_preparation(original, text, gradients=bool(wanted)), inject]
    # Names are only known once the loss is in: they are made unique where they are taken.
    prepared = Pipeline(tuple(passes)).run(original.clone()).model
    if wanted:
        record = read_record(prepared)
        total = "" if record is None else record.total
        passes += _gradients(total, wanted)
        passes += _optimizer(total, train, _several(trainable))
    bar = progress or Silent()
    feeds = feeds_for(original, data, batch=_BATCH)
    check_labels(prepared, feeds)
    run = run_verified(original, passes, feeds, bar)
    return compared(Work("loss", model, original, run, passes), feeds, bar)


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _wanted_gradients(
    grad: bool | str | Sequence[str], train: str | None, trainable: tuple[str, ...]
) -> tuple[str, ...]:
    """What the total is differentiated by; empty where no gradient is wanted."""
    asked = () if isinstance(grad, bool) else _several(grad)
    if grad is True:
        asked = (_WEIGHTS,)
    if train is not None and _WEIGHTS not in asked:
        asked += trainable or (_WEIGHTS,)
    return asked


def _preparation(model: ir.Model, loss: str, *, gradients: bool) -> list[Pass]:
    """What comes before a loss: a newer opset; weights and ranks where they can be seen."""
    losses = [describe_loss(without_place(spec)) for spec in parse_losses(loss)]
    needed = max(each.min_opset for each in losses)
    needed = max(needed, _GRADIENT_OPSET) if gradients else needed
    found: list[Pass] = []
    if gradients and model.functions:
        found.append(parse_pass(PassSpec("inline-functions", {"which": ("all",)})))
    if 0 < model.graph.opset_imports.get("", 0) < needed:
        options = {"to": (str(needed),), "strict": ()}
        found.append(parse_pass(PassSpec("upgrade-opset", options)))
    if gradients:
        found.append(parse_pass(PassSpec("lift-constants", {})))
        # Gradients need ranks, and an exporter's arithmetic on shapes hides them.
        found.append(parse_pass(PassSpec("fold-constants", {"only-integers": ()})))
    return found


def _gradients(total: str, wanted: tuple[str, ...]) -> list[Pass]:
    asked = PassSpec("add-gradient", {"of": (total,), "wrt": wanted})
    return [parse_pass(asked), parse_pass(PassSpec("lower-gradient", {}))]


def _optimizer(total: str, train: str | None, trainable: tuple[str, ...]) -> list[Pass]:
    if train is None:
        return []
    specs = parse_pipeline(train)
    if len(specs) != 1:
        raise UsageError(f"train is one optimizer, not '{train}'")
    options = {"kind": (specs[0].name,), "loss": (total,), **specs[0].options}
    if trainable:
        options["trainable"] = trainable
    return [parse_pass(PassSpec("add-optimizer", options))]
