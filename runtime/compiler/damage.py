"""How much noise quantizing one layer alone makes, for the time that it saves."""

from __future__ import annotations

from collections.abc import Mapping

from onnxfold.runtime.compiler.builder import Builder
from onnxfold.runtime.compiler.choice import Choice
from onnxfold.runtime.compiler.options import LINEAR
from onnxfold.runtime.compiler.quality import QualityJudge
from onnxfold.runtime.profile import execution_profile
from onnxfold.runtime.progress import Progress

_LEAST_SHARE = 1e-3
"""Of the run time: layers below are alike, and a measured 0 must not divide."""
_PROFILED_FEEDS = 2


class Damage:
    """Noise-to-signal power of each layer quantized alone, over its share of the float run time.

    The noise of layers adds up, near enough, so leaving the worst by this measure in float gains
    most for what it costs: the greedy solution of the knapsack.
    """

    def __init__(
        self,
        builder: Builder,
        judge: QualityJudge,
        layers: Mapping[str, str],
        base: Choice,
        progress: Progress,
    ) -> None:
        """Measure nothing yet.

        Args:
            builder: Makes models with one layer quantized.
            judge: Judges them, on a few feeds.
            layers: The names of all layers.
            base: Says how ranges are found.
            progress: Told of the first layer, and of each.
        """
        self._builder = builder
        self._judge = judge
        self._layers = layers
        self._choice = Choice("", LINEAR, calibration=base.calibration)
        self._progress = progress
        self._shares: dict[str, float] = {}
        self._announced = False

    def share(self, layer: str) -> float:
        """The share of the float run time that ``layer`` takes."""
        if not self._shares:
            self._shares = self._measured_shares()
        return self._shares[layer]

    def __call__(self, layer: str) -> float:
        """The damage of ``layer``, unlimited above 0."""
        if not self._announced:
            self._announced = True
            self._progress.stage("ranking the layers by damage", len(self._layers))
        others = [name for name in self._layers if name != layer]
        alone = self._choice.without(others, f"{layer} alone", "to measure another")
        quantized = self._builder.quantize(alone)
        self._progress.advance()
        if quantized is None:
            return 0.0
        noise = 10.0 ** (-self._judge(quantized).score / 10.0)
        return noise / self.share(layer)

    def _measured_shares(self) -> dict[str, float]:
        feeds = list(self._builder.feeds.first(_PROFILED_FEEDS))
        profile = execution_profile(self._builder.optimized, feeds)
        shares = profile.shares([[name] for name in self._layers])
        return {
            name: max(share, _LEAST_SHARE) for name, share in zip(self._layers, shares, strict=True)
        }
