"""``verify --loss``: two models judged in the units of losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.plan import LossRequest
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.specs import load_ir
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.compare import Comparison, comparable
from onnxfold.runtime.verify.loss_comparison import compare_losses

NO_LIMITS = Budget(None, None, None, decisions_first=False)
"""What noise may be where a loss decides."""


def loss_text(loss: str | Sequence[str]) -> str:
    """Losses as one text.

    Raises:
        UsageError: They are no names.
    """
    try:
        return loss if isinstance(loss, str) else ",".join(loss)
    except TypeError:
        message = f"loss is {loss!r}: name losses, like 'mse' or ['mse', 'psnr']"
        raise UsageError(message) from None


def loss_request(
    loss: str | Sequence[str], on: str | Sequence[str], labels: str
) -> LossRequest | None:
    """What is asked for of losses; None where nothing is."""
    text = loss_text(loss)
    names = (on,) if isinstance(on, str) else tuple(on)
    return LossRequest(text, names, labels) if text else None


def judged_by_loss(
    comparison: Comparison,
    reference: ir.Model,
    candidate: ir.Model,
    feeds: FeedSource,
    request: LossRequest,
    limit: float | None,
) -> Comparison:
    """``comparison`` with the differences in losses, which its verdict counts in.

    Raises:
        UsageError: A loss, a tensor or labels are unknown or do not fit.
    """
    plain = load_ir(comparable(reference, candidate))
    losses = compare_losses(reference, plain, feeds, request, limit)
    verdict = comparison.verdict
    for each in losses:
        verdict &= each.verdict
    return replace(comparison, losses=losses, verdict=verdict)
