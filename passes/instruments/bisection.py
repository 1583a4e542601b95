"""Finds the first rewrite of a pipeline that makes a model bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.base import Pass
from onnxfold.passes.errors import InconclusiveError, PassError
from onnxfold.passes.listener import RewriteListener, Step
from onnxfold.passes.pipeline import BaseInstrument, Instrument, Pipeline
from onnxfold.passes.walk import label


@dataclass(frozen=True)
class Rewrite:
    """One rewrite of a pipeline.

    Attributes:
        pass_name: The pass.
        rule: The rule.
        node: The node it was applied to, as ``Conv 'name'``; empty for the whole model.
    """

    pass_name: str
    rule: str
    node: str

    def __str__(self) -> str:
        """``pass/rule on Conv 'name'``."""
        return f"{self.pass_name}/{self.rule}" + (f" on {self.node}" if self.node else "")


class RewriteLimit(BaseInstrument, RewriteListener):
    """Permits the first ``limit`` rewrites of a pipeline and refuses all others.

    Attributes:
        limit: How many are permitted; None for all.
        rewrites: Those that were permitted, in order.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.rewrites: list[Rewrite] = []

    def listeners(self, pass_: Pass) -> Sequence[RewriteListener]:
        """Itself: it listens to every pass."""
        return (self,)

    def permits(self, pass_name: str, step: Step) -> bool:
        """Count the step, or refuse it."""
        if self.limit is not None and len(self.rewrites) >= self.limit:
            return False
        node = label(step.node) if step.node is not None else ""
        self.rewrites.append(Rewrite(pass_name, step.rule, node))
        return True


@dataclass(frozen=True)
class Culprit:
    """The first rewrite after which the model is bad.

    Attributes:
        number: Its number in the pipeline, from 1: with ``number - 1`` rewrites all is well.
        rewrite: What it was.
        total: How many rewrites the whole pipeline makes.
    """

    number: int
    rewrite: Rewrite
    total: int


def first_bad(is_good: Callable[[int], bool], total: int) -> int:
    """The smallest n in 1..total for which ``is_good(n)`` is false, by binary search.

    Args:
        is_good: Whether all is well with the first n rewrites; true for 0, false for ``total``.
        total: The number of rewrites.
    """
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return bad


def bisect_rewrites(
    passes: Sequence[Pass],
    model: ir.Model,
    is_good: Callable[[ir.Model], bool],
    instruments: Sequence[Instrument] = (),
) -> Culprit | None:
    """Find the first rewrite of ``passes`` after which ``is_good`` no longer holds.

    Runs the pipeline about log2(rewrites) times, each time on a copy of ``model``. A pipeline that
    fails with a PassError counts as bad.

    Args:
        passes: The pipeline.
        model: The model to start from; not changed.
        is_good: The test; true for ``model`` itself.
        instruments: Further instruments for each run (made for one model, so without state).

    Returns:
        The culprit, or None where the whole pipeline is good.

    Raises:
        InconclusiveError: ``model`` itself is bad.
    """
    if not is_good(model):
        raise InconclusiveError("the model fails the test before any rewrite; nothing to bisect")

    def run(limit: int | None) -> tuple[bool, list[Rewrite]]:
        counter = RewriteLimit(limit)
        try:
            result = Pipeline(tuple(passes), (*instruments, counter)).run(model.clone())
        except PassError:
            return False, counter.rewrites
        return is_good(result.model), counter.rewrites

    good, rewrites = run(None)
    if good:
        return None
    if not rewrites:
        raise InconclusiveError("the pipeline fails without rewriting anything; nothing to bisect")
    number = first_bad(lambda limit: run(limit)[0], len(rewrites))
    return Culprit(number, rewrites[number - 1], len(rewrites))
