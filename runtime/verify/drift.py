"""How far a quantized model's outputs move while it still computes the same thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from onnxfold.passes.errors import ExecutionError
from onnxfold.runtime.feeds import FeedSource
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, SessionConfig
from onnxfold.runtime.specs import Feed, ModelLike, load_ir
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.metrics import OutputMetrics
from onnxfold.runtime.verify.nudge import nudge_scales
from onnxfold.runtime.verify.softmax import LogitsSession
from onnxfold.runtime.verify.structure import flatten_outputs

_NUDGES = 4
_KEPT_BYTES = 256 << 20


class DriftProbe:
    """How far a model's outputs move while it still computes the same thing.

    Two ways: ONNX Runtime's optimizations are switched on, and the scales of its quantized
    activations move by one unit in the last place. The second is what counts where ONNX Runtime
    leaves a quantized graph in float both ways: on a network that amplifies one step into ten,
    any other correct order of arithmetic moves the outputs as far.

    Attributes:
        metrics: By output, of the way that moves it furthest; empty until ``measure`` is called.
    """

    def __init__(
        self,
        model: ModelLike,
        feeds: FeedSource | Sequence[Feed],
        configs: tuple[SessionConfig, SessionConfig] = (REFERENCE, DEPLOYMENT),
        opened: LogitsSession | None = None,
    ) -> None:
        """Remember what to measure; nothing runs yet.

        Args:
            model: The model.
            feeds: What to feed.
            configs: Optimizations off, and as deployed.
            opened: The model with optimizations off, where it is open already.
        """
        self.metrics: dict[str, OutputMetrics] = {}
        self._opened = opened
        self._model = model
        self._feeds = feeds
        self._configs = configs

    def measure(self) -> Mapping[str, OutputMetrics]:
        """The drift, measured once; a way in which ONNX Runtime refuses the model is left out."""
        if not self.metrics:
            off = self._opened or LogitsSession(Session(self._model, self._configs[0]), {})
            kept: dict[int, dict[str, Any]] = {}
            for way in self._ways():
                # ONNX Runtime may make a graph of a valid one that it refuses itself.
                with suppress(ExecutionError):
                    self._follow(way, off, kept)
        return self.metrics

    def _ways(self) -> Iterator[Callable[[], Session]]:
        """One after the other: each session holds the weights, and what it needs to run."""
        off, on = self._configs
        yield partial(Session, self._model, on)
        for seed in range(_NUDGES):
            nudged = nudge_scales(load_ir(self._model), seed)
            if nudged is not None:
                yield partial(Session, nudged, off)

    def _follow(
        self, way: Callable[[], Session], off: LogitsSession, kept: dict[int, dict[str, Any]]
    ) -> None:
        """Add how far one way moves the outputs; those of ``off`` are kept up to a size."""
        comparer, session = Comparer(), way()
        for sample, feed in enumerate(self._feeds):
            expected = kept.get(sample) or off.run(feed)[0]
            if len(kept) * _bytes(expected) < _KEPT_BYTES:
                kept[sample] = expected
            comparer.add(expected, session.run(feed))
        for name, found in comparer.metrics.items():
            known = self.metrics.get(name, found)
            self.metrics[name] = min(known, found, key=_sqnr)


def _bytes(outputs: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in flatten_outputs(outputs).values())


def _sqnr(metrics: OutputMetrics) -> float:
    return metrics.sqnr_db
