"""Holds an exported model against its framework: the same inputs, the numbers that both give."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import InconclusiveError
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.specs import Feed
from onnxfold.runtime.verify.compare import Comparison
from onnxfold.runtime.verify.comparer import Comparer
from onnxfold.runtime.verify.gates import Gate, Verdict
from onnxfold.runtime.verify.metrics import OutputMetrics

_RELATIVE = 1e-4
_ABSOLUTE = 1e-6
_RARE = 1e-3
_CODES = frozenset({"int8", "uint8", "int16", "uint16"})
"""What quantized values are stored in."""


@dataclass(frozen=True)
class FrameworkGate(Gate):
    """What an export promises: the framework's numbers, but for the order of sums.

    Two runtimes add up in different orders, with kernels of their own: 1e-4 of the largest value.
    Codes, of 8 and 16 bits, are within one step of the framework's, and what counts or decides
    (wide integers, truth values, text) is the same: both but for one value in a thousand.
    """

    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """See ``Gate``."""
        reasons: list[str] = []
        if metrics.nonfinite_mismatches:
            count = metrics.nonfinite_mismatches
            reasons.append(f"output '{metrics.name}': {count} values are finite on one side only")
        if metrics.dtype.startswith(("float", "bfloat")):
            allowed = _RELATIVE * metrics.max_abs_reference + _ABSOLUTE
            if metrics.max_abs_diff > allowed:
                reasons.append(
                    f"output '{metrics.name}': max |difference| from the framework is "
                    f"{metrics.max_abs_diff:.3g}, wanted <= {allowed:.3g} ({metrics.worst})"
                )
        elif metrics.dtype in _CODES:
            if _rate_beyond_one(metrics) > _RARE:
                reasons.append(
                    f"output '{metrics.name}': {_rate_beyond_one(metrics):.2%} of the values are "
                    f"more than one step from the framework's, wanted <= {_RARE:.1%} "
                    f"({metrics.worst})"
                )
        elif metrics.different > _RARE * metrics.elements:
            reasons.append(
                f"output '{metrics.name}': {metrics.different} of {metrics.elements} values are "
                f"others than the framework's, wanted <= {_RARE:.1%} ({metrics.worst})"
            )
        return Verdict(not reasons, tuple(reasons))


@dataclass(frozen=True)
class EstimatorGate(FrameworkGate):
    """What an export of an estimator promises: its scores as others, its labels exactly.

    A label is a name, not a quantity: none is near another. Estimators compare and add in float64,
    so that one whose features lie within float32's rounding of a threshold may be labelled
    otherwise; that is refused too, and the sample is named.
    """

    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """See ``Gate``."""
        if metrics.dtype.startswith(("float", "bfloat")):
            return super().judge_output(metrics)
        if not metrics.different:
            return Verdict(True, ())
        return Verdict(
            False,
            (
                f"output '{metrics.name}': {metrics.different} of {metrics.elements} labels are "
                f"others than the framework's ({metrics.worst})",
            ),
        )


def prove(
    model: ir.Model,
    name: str,
    feeds: Sequence[Feed],
    expected: Sequence[Feed],
    others: Sequence[Feed] = (),
    gate: Gate | None = None,
) -> Comparison:
    """Compare what ONNX Runtime makes of ``model`` with what the framework computed.

    Args:
        model: The exported model.
        name: What the source is called, with its framework.
        feeds: What the framework was fed, by the model's names.
        expected: What it computed.
        others: What other kernels of it computed: an output may differ as far as they do.
        gate: What judges; ``FrameworkGate`` if None.

    Raises:
        InconclusiveError: There is nothing to compare.
        ExecutionError: The model does not load or run.
    """
    started = time.perf_counter()
    if not feeds:
        raise InconclusiveError(f"{name} was run on no sample: nothing proves the export")
    plain, deployed, drift = Comparer(), Comparer(), Comparer()
    sessions = Session(model, REFERENCE), Session(model, DEPLOYMENT)
    for index, (feed, wanted) in enumerate(zip(feeds, expected, strict=True)):
        for session, comparer in zip(sessions, (plain, deployed), strict=True):
            comparer.add(wanted, session.run(feed))
        if others:
            drift.add(wanted, others[index])
    gate = gate or FrameworkGate()
    excuse = drift.metrics if others else None
    verdict = plain.judge(gate, excuse) & deployed.judge(gate, excuse)
    return Comparison(
        reference=name,
        candidate=sessions[0].label,
        contract=Contract.REASSOCIATED,
        budget=None,
        samples=plain.samples,
        feeds={},
        outputs=tuple(plain.metrics.values()),
        deployment=tuple(deployed.metrics.values()),
        drift=tuple(drift.metrics.values()),
        verdict=verdict,
        configs=(REFERENCE, DEPLOYMENT),
        seconds=time.perf_counter() - started,
    )


def _rate_beyond_one(metrics: OutputMetrics) -> float:
    beyond = sum(count for steps, count in metrics.lsb.items() if steps > 1)
    return beyond / max(metrics.lsb.total(), 1)
