"""Compares two streams of outputs, sample after sample, without keeping any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

from onnxfold.passes.errors import InconclusiveError
from onnxfold.runtime.verify.gates import Gate, Verdict
from onnxfold.runtime.verify.metrics import OutputMetrics, measure
from onnxfold.runtime.verify.structure import flatten_outputs, output_differences

_MOST_REASONS = 8


class Comparer:
    """Collects what differs between a reference's and a candidate's outputs.

    Attributes:
        samples: Feeds compared so far.
        metrics: The metrics of each output so far, by name.
        structure: Differences in names, types, shapes or sample counts, the first few.
    """

    def __init__(self, *, additive: bool = False) -> None:
        """Start empty.

        Args:
            additive: Whether the candidate may return more outputs than the reference.
        """
        self.samples = 0
        self.metrics: dict[str, OutputMetrics] = {}
        self.structure: tuple[str, ...] = ()
        self._additive = additive

    def add(self, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """Compare the outputs of one feed."""
        old, new = flatten_outputs(reference), flatten_outputs(candidate)
        differences = output_differences(old, new, additive=self._additive)
        sample = self.samples
        self.samples += 1
        if differences:
            self.note(*(f"sample {sample}: {each}" for each in differences))
            return
        for name, array in old.items():
            measured = measure(name, array, new[name], sample)
            self.metrics[name] = _merged(self.metrics.get(name), measured)

    def note(self, *differences: str) -> None:
        """Record differences in structure."""
        self.structure = (self.structure + differences)[:_MOST_REASONS]

    def merge(self, other: Comparer) -> None:
        """Take over what another comparer saw of other samples."""
        self.samples += other.samples
        self.note(*other.structure)
        for name, measured in other.metrics.items():
            self.metrics[name] = _merged(self.metrics.get(name), measured)

    def judge(self, gate: Gate, drift: Mapping[str, OutputMetrics] | None = None) -> Verdict:
        """What ``gate`` says; differences in structure fail whatever the numbers are.

        Raises:
            InconclusiveError: Nothing was compared: no sample, or no output.
        """
        if self.structure:
            return Verdict(False, self.structure)
        if not self.samples:
            raise InconclusiveError("nothing was compared: there is no sample; give more data")
        if not self.metrics:
            raise InconclusiveError("nothing was compared: the models have no outputs")
        return gate.judge(list(self.metrics.values()), drift)


def compare_outputs(
    reference: Iterable[Mapping[str, Any]],
    candidate: Iterable[Mapping[str, Any]],
    *,
    additive: bool = False,
) -> Comparer:
    """Compare two streams of outputs; one that ends early is a difference in structure."""
    comparer = Comparer(additive=additive)
    for old, new in zip_longest(reference, candidate):
        if old is None or new is None:
            side = "candidate" if new is None else "reference"
            comparer.note(f"the {side} has only {comparer.samples} samples, the other has more")
            break
        comparer.add(old, new)
    return comparer


def _merged(known: OutputMetrics | None, measured: OutputMetrics) -> OutputMetrics:
    return measured if known is None else known.merge(measured)
