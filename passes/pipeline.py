"""Runs passes in order, and lets instruments watch (timing, verification, dumps, bisection)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.collector import paused_collector
from onnxfold.passes.listener import RewriteListener


class Instrument(Protocol):
    """Watches a pipeline. An instrument stops the pipeline by raising an OnnxfoldError."""

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """``pass_`` is about to run on ``model``."""

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """``pass_`` has run; ``model`` is what it left."""

    def pass_failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        """``pass_``, or an instrument after it, raised ``error``; ``model`` may be invalid."""

    def listeners(self, pass_: Pass) -> Sequence[RewriteListener]:
        """Listeners to attach to the rewriter of ``pass_``."""
        ...


class BaseInstrument:
    """An instrument that does nothing; override what is needed."""

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """See ``Instrument``."""

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """See ``Instrument``."""

    def pass_failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        """See ``Instrument``."""

    def listeners(self, pass_: Pass) -> Sequence[RewriteListener]:
        """See ``Instrument``."""
        return ()


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline did.

    Attributes:
        model: The rewritten model.
        results: One result per pass, in order.
    """

    model: ir.Model
    results: tuple[tuple[Pass, PassResult], ...]

    @property
    def modified(self) -> bool:
        """Whether any pass changed anything."""
        return any(result.modified for _, result in self.results)


@dataclass(frozen=True)
class Pipeline:
    """Passes to run one after the other.

    Attributes:
        passes: The passes, in order.
        instruments: Watch every pass; called in order before a pass, in reverse order after it.
    """

    passes: tuple[Pass, ...]
    instruments: tuple[Instrument, ...] = ()

    def run(self, model: ir.Model) -> PipelineResult:
        """Run all passes on ``model``, in place.

        A pass that has changed nothing is not run again before another has: its result stands.

        Raises:
            PassError: A pass failed, or an instrument rejected what it left.
            NotEquivalentError: A contract gate among the instruments rejected a pass.
        """
        results: list[tuple[Pass, PassResult]] = []
        idle: list[tuple[Pass, PassResult]] = []
        for pass_ in self.passes:
            known = next((result for other, result in idle if other == pass_), None)
            with paused_collector():
                result = self._run_pass(pass_, model, known)
            model = result.model
            results.append((pass_, result))
            if result.modified:
                idle.clear()
            elif known is None and not result.refused:
                idle.append((pass_, result))
        return PipelineResult(model, tuple(results))

    def _run_pass(self, pass_: Pass, model: ir.Model, known: PassResult | None) -> PassResult:
        try:
            for instrument in self.instruments:
                instrument.before_pass(pass_, model)
            listeners = [each for i in self.instruments for each in i.listeners(pass_)]
            result = known or pass_.run(model, listeners)
            for instrument in reversed(self.instruments):
                instrument.after_pass(pass_, result.model, result)
        except Exception as error:
            for instrument in self.instruments:
                instrument.pass_failed(pass_, model, error)
            raise
        return result
