"""What each contract asks of the numbers: the gates and their thresholds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxfold.passes.base import Contract
from onnxfold.runtime.verify.bounds import rate_lower_bound, rate_upper_bound, samples_needed
from onnxfold.runtime.verify.budget import Budget, limits_for_scores
from onnxfold.runtime.verify.metrics import OutputMetrics

_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
_COARSE_TOLERANCE = 3e-2  # float8 and float4: no finer than bfloat16
_ABSOLUTE_SHARE = 1e-2  # 1e-7 for float32
_SQNR_AT_FLOAT32 = 90.0
_AFTER_SOFTMAX = 10.0
_INTEGER_SQNR = 35.0
_INTEGER_LSB_P99 = 2
_INTEGER_LSB_MAX = 16
_DRIFT_MARGIN_DB = 3.0
_SMALL_INTEGERS = frozenset({"int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"})


@dataclass(frozen=True)
class Verdict:
    """What a gate says.

    Attributes:
        passed: Whether every output is within what the contract allows.
        reasons: Why not: each names output, metric, what was got and what was wanted.
        inconclusive: Nothing is out of bounds, but the samples are too few to say so.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    inconclusive: bool = False

    @property
    def status(self) -> str:
        """``passed``, ``failed`` or ``inconclusive``."""
        if self.passed:
            return "passed"
        return "inconclusive" if self.inconclusive else "failed"

    def __and__(self, other: Verdict) -> Verdict:
        """Both: a failure outweighs an open question, which outweighs a pass."""
        decided = [verdict for verdict in (self, other) if not verdict.passed]
        failed = any(not verdict.inconclusive for verdict in decided)
        reasons = tuple(dict.fromkeys(reason for each in decided for reason in each.reasons))
        return Verdict(not decided, reasons, bool(decided) and not failed)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        return {"status": self.status, "reasons": list(self.reasons)}


PASSED = Verdict(True)


class Gate(ABC):
    """Judges the metrics of all outputs of a comparison."""

    def judge(
        self,
        metrics: Sequence[OutputMetrics],
        drift: Mapping[str, OutputMetrics] | None = None,
    ) -> Verdict:
        """Judge every output.

        Args:
            metrics: One entry per output.
            drift: How far the *original* model's outputs move when only ONNX Runtime's
                optimizations are switched on. An output that fails by itself passes where it
                moved no further than that. None where the contract allows no such excuse.
        """
        verdict = PASSED
        for each in metrics:
            own = self.judge_output(each)
            if not own.passed and drift is not None and each.name in drift:
                own = own if drift_excess(each, drift[each.name]) else PASSED
            verdict &= own
        return verdict

    @abstractmethod
    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """Judge one output by itself."""


@dataclass(frozen=True)
class ExactGate(Gate):
    """EXACT and ADDITIVE: bit-identical (a NaN equals a NaN; -0 is not 0)."""

    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """See ``Gate``."""
        return _verdict(_unless_identical(metrics))


@dataclass(frozen=True)
class ReassociatedGate(Gate):
    """REASSOCIATED: rounding noise only, relative to the largest value, and 90 dB of SQNR.

    Element-wise relative error and ULP are no use here: cancellation makes both arbitrarily large
    in deep networks that compute the same function.

    Attributes:
        after_softmax: Outputs whose values before the softmax are judged as well. A softmax
            amplifies rounding (1.1e-5 of the maximum was measured where the logits moved 4.7e-7),
            so these get ten times the tolerance, and saturated ones hide nothing.
    """

    after_softmax: frozenset[str] = frozenset()

    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """See ``Gate``."""
        if not metrics.dtype.startswith(("float", "bfloat")):
            return _verdict(_unless_identical(metrics))
        relative = _TOLERANCE.get(metrics.dtype, _COARSE_TOLERANCE)
        if metrics.name in self.after_softmax:
            relative *= _AFTER_SOFTMAX
        floor = relative * _ABSOLUTE_SHARE
        allowed = relative * metrics.max_abs_reference + floor
        # The same strictness at every precision: 90 dB where 1e-5 is asked.
        sqnr = _SQNR_AT_FLOAT32 - 20 * math.log10(relative / _TOLERANCE["float32"])
        # An output that is itself below the absolute floor is noise: it has no ratio.
        has_signal = metrics.max_abs_reference > floor
        reasons = [
            *_unless_finite_alike(metrics),
            *_unless(
                metrics.max_abs_diff <= allowed,
                metrics,
                "max |difference|",
                metrics.max_abs_diff,
                f"<= {allowed:.3g}",
            ),
            *(_unless_sqnr(metrics, sqnr) if has_signal else ()),
        ]
        return _verdict(reasons)


@dataclass(frozen=True)
class IntegerGate(Gate):
    """INTEGER, end to end: quantized outputs within 2 steps at the 99th percentile, SQNR 35 dB.

    One step for all is not askable end to end: ONNX Runtime itself moves 2-42 % of the outputs
    of an int8 network by up to 2 steps between its optimization levels. Operator by operator,
    fed with the original's tensors, one step at a rate of 1e-3 is.
    """

    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """See ``Gate``."""
        if metrics.dtype.startswith(("float", "bfloat")):
            return _verdict([*_unless_finite_alike(metrics), *_unless_sqnr(metrics, _INTEGER_SQNR)])
        if metrics.dtype not in _SMALL_INTEGERS:
            return _verdict(_unless_identical(metrics))
        p99, largest = metrics.lsb_quantile(0.99), metrics.max_lsb
        return _verdict(
            [
                *_unless(
                    p99 <= _INTEGER_LSB_P99,
                    metrics,
                    "99th percentile of |difference|",
                    p99,
                    f"<= {_INTEGER_LSB_P99} steps",
                ),
                *_unless(
                    largest <= _INTEGER_LSB_MAX,
                    metrics,
                    "max |difference|",
                    largest,
                    f"<= {_INTEGER_LSB_MAX} steps",
                ),
                *_unless_sqnr(metrics, _INTEGER_SQNR),
            ]
        )


@dataclass(frozen=True)
class ApproximateGate(Gate):
    """APPROXIMATE: a budget.

    Attributes:
        budget: What may change.
        states: Outputs that are fed back, and judged by what the model then puts out: here they
            only have to be finite where the reference is.
    """

    budget: Budget = field(default_factory=Budget)
    states: frozenset[str] = frozenset()

    def judge_output(self, metrics: OutputMetrics) -> Verdict:
        """See ``Gate``."""
        if metrics.name in self.states:
            return _verdict(_unless_finite_alike(metrics))
        budget = self.budget
        counted = not metrics.dtype.startswith(("float", "bfloat"))
        if counted and metrics.dtype not in _SMALL_INTEGERS:
            # Labels, indices, decisions: they have no noise, they are right or wrong.
            return self._judge_flips(metrics, metrics.different, metrics.elements)
        noise = self._judge_noise(metrics, budget)
        decisions = self._judge_flips(metrics, metrics.flips, metrics.rows)
        scores = budget.decisions_first and budget.max_flip_rate is not None and metrics.rows > 0
        if not scores or noise.passed:
            return PASSED if scores and decisions.inconclusive else noise & decisions
        # Beyond the wider limits too, no number of samples would help.
        return self._judge_noise(metrics, limits_for_scores(budget)) & decisions

    @staticmethod
    def _judge_noise(metrics: OutputMetrics, budget: Budget) -> Verdict:
        reasons = _unless_finite_alike(metrics)
        if budget.sqnr_db is not None:
            reasons += _unless_sqnr(metrics, budget.sqnr_db)
        if budget.cosine is not None:
            reasons += _unless(
                metrics.cosine >= budget.cosine,
                metrics,
                "cosine similarity",
                metrics.cosine,
                f">= {budget.cosine:g}",
            )
        if budget.max_abs_diff is not None:
            reasons += _unless(
                metrics.max_abs_diff <= budget.max_abs_diff,
                metrics,
                "max |difference|",
                metrics.max_abs_diff,
                f"<= {budget.max_abs_diff:g}",
            )
        return _verdict(reasons)

    def _judge_flips(self, metrics: OutputMetrics, flips: int, rows: int) -> Verdict:
        limit, confidence = self.budget.max_flip_rate, self.budget.confidence
        if limit is None or not rows:
            return PASSED
        upper = rate_upper_bound(flips, rows, confidence)
        if upper <= limit:
            return PASSED
        reason = (
            f"output '{metrics.name}': {flips} changed decisions in {rows}: {confidence:.0%} upper "
            f"bound of the rate is {upper:.2%}, wanted <= {limit:.2%}"
        )
        if rate_lower_bound(flips, rows, confidence) > limit:
            return Verdict(False, (reason,))
        advice = f"too few samples: without a change {samples_needed(limit, confidence)} are needed"
        return Verdict(False, (f"{reason}; {advice}",), inconclusive=True)


def gate_for(
    contract: Contract,
    budget: Budget | None = None,
    after_softmax: frozenset[str] = frozenset(),
    states: frozenset[str] = frozenset(),
) -> Gate:
    """The gate of a contract.

    Args:
        contract: What the pass promised.
        budget: For APPROXIMATE; the default budget if None.
        after_softmax: For REASSOCIATED; see ``ReassociatedGate``.
        states: For APPROXIMATE; see ``ApproximateGate``.
    """
    if contract is Contract.REASSOCIATED:
        return ReassociatedGate(after_softmax)
    if contract is Contract.INTEGER:
        return IntegerGate()
    if contract is Contract.APPROXIMATE:
        return ApproximateGate(budget or Budget(), states)
    return ExactGate()


def deployment_gate_for(
    contract: Contract,
    budget: Budget | None = None,
    after_softmax: frozenset[str] = frozenset(),
    states: frozenset[str] = frozenset(),
) -> Gate:
    """The gate of a contract where ONNX Runtime's own optimizations are on.

    They reorder arithmetic themselves: bit identity cannot be asked there.
    """
    if contract in (Contract.INTEGER, Contract.APPROXIMATE):
        return gate_for(contract, budget, states=states)
    return ReassociatedGate(after_softmax)


def drift_excess(metrics: OutputMetrics, drift: OutputMetrics) -> tuple[str, ...]:
    """In which metrics an output moved further than the drift; empty if in none.

    Two independent roundings of the same size double the noise power and at most double the
    largest difference: 3 dB, and a factor of two.
    """
    wanted_sqnr = drift.sqnr_db - _DRIFT_MARGIN_DB
    steps = 2 * drift.lsb_quantile(0.99)
    counted = not metrics.dtype.startswith(("float", "bfloat"))
    return (
        *_unless(
            metrics.nonfinite_mismatches <= drift.nonfinite_mismatches,
            metrics,
            "NaN or infinity mismatches",
            metrics.nonfinite_mismatches,
            f"<= {drift.nonfinite_mismatches}",
        ),
        *_unless_sqnr(metrics, wanted_sqnr),
        *_unless(
            metrics.max_abs_diff <= 2 * drift.max_abs_diff,
            metrics,
            "max |difference|",
            metrics.max_abs_diff,
            f"<= {2 * drift.max_abs_diff:.3g}",
        ),
        *_unless(
            metrics.lsb_quantile(0.99) <= steps,
            metrics,
            "99th percentile of |difference|",
            metrics.lsb_quantile(0.99),
            f"<= {steps} steps",
        ),
        *(
            _unless(
                metrics.different <= 2 * drift.different,
                metrics,
                "different elements",
                metrics.different,
                f"<= {2 * drift.different}",
            )
            if counted
            else ()
        ),
    )


def _verdict(reasons: Sequence[str]) -> Verdict:
    return Verdict(not reasons, tuple(reasons))


def _unless(
    holds: bool, metrics: OutputMetrics, metric: str, got: float, wanted: str
) -> tuple[str, ...]:
    if holds:
        return ()
    place = f" ({metrics.worst})" if metrics.worst is not None else ""
    return (f"output '{metrics.name}': {metric} is {got:.6g}, wanted {wanted}{place}",)


def _unless_sqnr(metrics: OutputMetrics, wanted: float) -> tuple[str, ...]:
    got = metrics.sqnr_db
    return _unless(got >= wanted, metrics, "SQNR", got, f">= {wanted:.1f} dB")


def _unless_finite_alike(metrics: OutputMetrics) -> tuple[str, ...]:
    count = metrics.nonfinite_mismatches
    return _unless(not count, metrics, "count of NaN or infinity on one side only", count, "0")


def _unless_identical(metrics: OutputMetrics) -> tuple[str, ...]:
    count = metrics.different
    return _unless(not count, metrics, "count of elements that are not identical", count, "0")
