from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.verify.bounds import rate_lower_bound, rate_upper_bound, samples_needed
from onnxfold.runtime.verify.budget import Budget
from onnxfold.runtime.verify.gates import (
    PASSED,
    Verdict,
    deployment_gate_for,
    drift_excess,
    gate_for,
)
from onnxfold.runtime.verify.metrics import measure

RNG = np.random.default_rng(5)
SIGNAL: Array = RNG.normal(size=4096)


def noisy(decibels: float, dtype: Any = np.float32) -> tuple[Array, Array]:
    """A signal, and the same with noise so many decibels below it."""
    noise = RNG.normal(size=SIGNAL.size)
    noise *= np.sqrt(np.sum(SIGNAL**2) / np.sum(noise**2)) * 10 ** (-decibels / 20)
    return np.array(SIGNAL, dtype), np.array(SIGNAL + noise, dtype)


def status(pair: tuple[Array, Array], contract: Contract, budget: Budget | None = None) -> str:
    return gate_for(contract, budget).judge([measure("y", *pair)]).status


@pytest.mark.parametrize(
    ("flips", "rows"), [(0, 59), (0, 299), (1, 100), (2, 40), (5, 50), (49, 50), (500, 1000)]
)
def test_upper_bound_leaves_the_tail_it_promises(flips: int, rows: int) -> None:
    bound = rate_upper_bound(flips, rows)
    tail = sum(math.comb(rows, k) * bound**k * (1 - bound) ** (rows - k) for k in range(flips + 1))
    assert tail == pytest.approx(0.05, rel=1e-9)


def test_upper_bound_is_one_where_all_flipped_or_nothing_was_seen() -> None:
    assert rate_upper_bound(10, 10) == rate_upper_bound(0, 0) == 1.0
    assert rate_lower_bound(0, 10) == 0.0


def test_bounds_mirror_each_other() -> None:
    for flips, rows in ((3, 10), (40, 50), (0, 7), (7, 7)):
        mirrored = 1 - rate_upper_bound(rows - flips, rows)
        assert rate_lower_bound(flips, rows) == pytest.approx(mirrored, abs=1e-12)


@pytest.mark.parametrize(
    ("rate", "samples"), [(0.05, 59), (0.01, 299), (0.001, 2995), (0.0001, 29956)]
)
def test_samples_needed(rate: float, samples: int) -> None:
    assert samples_needed(rate) == samples
    assert rate_upper_bound(0, samples) <= rate < rate_upper_bound(0, samples - 1)


@pytest.mark.parametrize(
    ("dtype", "accepted", "rejected"),
    [(np.float32, 105, 85), (np.float64, 250, 225), (np.float16, 55, 30)],
)
def test_reassociation_noise_by_precision(dtype: Any, accepted: float, rejected: float) -> None:
    assert status(noisy(accepted, dtype), Contract.REASSOCIATED) == "passed"
    assert status(noisy(rejected, dtype), Contract.REASSOCIATED) == "failed"


def test_reassociation_asks_both_maximum_and_ratio() -> None:
    one_off = SIGNAL.astype(np.float32)
    one_off[3] += np.float32(2e-4)  # 97 dB, and five times the maximum allowed
    verdict = gate_for(Contract.REASSOCIATED).judge(
        [measure("y", SIGNAL.astype(np.float32), one_off)]
    )
    (reason,) = verdict.reasons
    assert "output 'y': max |difference| is 0.0002" in reason
    assert "wanted <= " in reason
    assert "index [3]" in reason


def test_softmax_output_may_move_ten_times_as_far() -> None:
    old = np.array([[0.5, 0.5]], np.float32)
    pair = old, old + np.array([[2e-5, -2e-5]], np.float32)
    assert status(pair, Contract.REASSOCIATED) == "failed"
    gate = gate_for(Contract.REASSOCIATED, after_softmax=frozenset({"y"}))
    assert gate.judge([measure("y", *pair)]).passed


def test_decisions_do_not_reassociate() -> None:
    pair = np.array([3, 4]), np.array([3, 5])
    assert status(pair, Contract.REASSOCIATED) == "failed"


def codes(step: int, share: float) -> tuple[Array, Array]:
    old = RNG.integers(-90, 90, 4096).astype(np.int8)
    return old, (old + step * (RNG.random(4096) < share)).astype(np.int8)


def test_integer_steps() -> None:
    assert status(codes(1, 0.4), Contract.INTEGER) == "passed"
    assert status(codes(2, 0.1), Contract.INTEGER) == "passed"
    assert status(codes(3, 0.1), Contract.INTEGER) == "failed"
    old, new = codes(0, 0)
    new[5] += 30
    assert status((old, new), Contract.INTEGER) == "failed"
    assert status((np.array([7]), np.array([8])), Contract.INTEGER) == "failed"


def test_small_steps_may_still_drown_a_small_signal() -> None:
    old = RNG.integers(-2, 3, 4096).astype(np.int8)
    new = (old + (RNG.random(4096) < 0.5)).astype(np.int8)
    assert status((old, new), Contract.INTEGER) == "failed"


def test_integer_float_output_needs_35_decibels() -> None:
    assert status(noisy(36), Contract.INTEGER) == "passed"
    assert status(noisy(34), Contract.INTEGER) == "failed"


def test_drift_excuses_no_more_than_itself() -> None:
    gate = gate_for(Contract.INTEGER)
    drift = {"y": measure("y", *noisy(30))}
    assert gate.judge([measure("y", *noisy(29))], drift).passed
    verdict = gate.judge([measure("y", *noisy(25))], drift)
    assert verdict.status == "failed"
    assert any(
        "SQNR is 25" in reason for reason in drift_excess(measure("y", *noisy(25)), drift["y"])
    )
    nan = np.full(3, np.nan, np.float32), np.zeros(3, np.float32)
    assert not gate.judge([measure("y", *nan)], drift).passed


def test_budget_limits() -> None:
    assert status(noisy(31), Contract.APPROXIMATE) == "passed"
    assert status(noisy(29), Contract.APPROXIMATE) == "failed"
    assert status(noisy(29), Contract.APPROXIMATE, Budget(sqnr_db=None, cosine=None)) == "passed"
    assert status(noisy(60), Contract.APPROXIMATE, Budget(max_abs_diff=1e-6)) == "failed"
    # 26 dB is a cosine of 0.9987
    assert status(noisy(26), Contract.APPROXIMATE, Budget(sqnr_db=20)) == "failed"
    broken = np.array([1, np.nan], np.float32), np.array([1, 2], np.float32)
    assert status(broken, Contract.APPROXIMATE, Budget(None, None)) == "failed"


def scores(rows: int, flips: int) -> tuple[Array, Array]:
    old = np.tile(np.array([1.0, 1.0001], np.float32), (rows, 1))
    new: Array = np.array(old)
    new[:flips] = [1.0002, 1.0001]
    return old, new


@pytest.mark.parametrize(
    ("rows", "flips", "expected"),
    [
        (299, 0, "passed"),
        (298, 0, "inconclusive"),
        (50, 1, "inconclusive"),
        (50, 5, "failed"),
        (2000, 10, "passed"),
        (2000, 40, "failed"),
    ],
)
def test_flips_are_bounded_with_confidence(rows: int, flips: int, expected: str) -> None:
    strict = Budget(decisions_first=False)
    assert status(scores(rows, flips), Contract.APPROXIMATE, strict) == expected


@pytest.mark.parametrize(
    ("rows", "flips", "noise", "expected"),
    [
        (10, 0, 0.0, "passed"),  # too few to prove the rate: the limits on noise decide
        (10, 0, 0.1, "inconclusive"),  # 20 dB: neither is proven
        (10, 0, 0.5, "failed"),  # 6 dB: no number of samples would excuse that
        (400, 0, 0.1, "passed"),  # the rate is proven, and 20 dB is enough then
        (400, 0, 0.5, "failed"),  # 6 dB is not
        (400, 40, 0.1, "failed"),
    ],
)
def test_decisions_come_first_for_scores(
    rows: int, flips: int, noise: float, expected: str
) -> None:
    old, new = scores(rows, flips)
    assert status((old, new * np.float32(1 + noise)), Contract.APPROXIMATE) == expected


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.02", Budget(max_flip_rate=0.02)),
        ("flips=0.02", Budget(max_flip_rate=0.02)),
        ("sqnr=25,cosine=0.99", Budget(25.0, 0.99, None, decisions_first=False)),
        ("max-difference=0.5", Budget(None, None, None, max_abs_diff=0.5, decisions_first=False)),
    ],
)
def test_budgets_are_written_as_text(text: str, budget: Budget) -> None:
    assert Budget.from_text(text) == budget


@pytest.mark.parametrize("text", ["", "often", "flops=0.1", "flips=", "2", "cosine=1.5"])
def test_a_malformed_budget_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        Budget.from_text(text)


def test_changed_labels_are_flips() -> None:
    labels = RNG.integers(0, 10, 299)
    assert status((labels, labels), Contract.APPROXIMATE) == "passed"
    assert status((labels, labels + 1), Contract.APPROXIMATE) == "failed"
    assert status((labels[:20], labels[:20]), Contract.APPROXIMATE) == "inconclusive"


def test_inconclusive_says_how_many_samples() -> None:
    strict = Budget(decisions_first=False)
    verdict = gate_for(Contract.APPROXIMATE, strict).judge([measure("y", *scores(10, 0))])
    assert "299 are needed" in verdict.reasons[0]


def test_verdicts_combine() -> None:
    failed, unclear = Verdict(False, ("a",)), Verdict(False, ("b",), inconclusive=True)
    assert (PASSED & PASSED).passed
    assert (PASSED & unclear).status == "inconclusive"
    assert (unclear & failed) == Verdict(False, ("b", "a"))
    assert (failed & failed).reasons == ("a",)
    assert json.loads(json.dumps(failed.to_json())) == {"status": "failed", "reasons": ["a"]}


def test_deployment_never_asks_for_identical_bits() -> None:
    gate = deployment_gate_for(Contract.EXACT)
    assert gate.judge([measure("y", *noisy(110))]).passed
    assert not gate.judge([measure("y", *noisy(80))]).passed
    assert deployment_gate_for(Contract.INTEGER) == gate_for(Contract.INTEGER)
