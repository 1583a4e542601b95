"""Faults that other comparators let through, and harmless changes that they reject."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import InconclusiveError
from onnxfold.runtime.verify.comparer import compare_outputs
from onnxfold.runtime.verify.gates import Verdict, gate_for

Samples = list[dict[str, Array]]

RNG = np.random.default_rng(20)
LARGE = RNG.normal(size=1_000_000).astype(np.float32)
LARGE_WRONG: Array = np.array(LARGE)
LARGE_WRONG[777_777] += 0.5
SMALL = RNG.normal(0, 1e-6, 1000).astype(np.float32)
LOGITS = RNG.normal(0, 100, 1000).astype(np.float32)
LOGITS[:5] = 1e-5
REORDERED = LOGITS + RNG.normal(0, 2e-5, 1000).astype(np.float32)
CODES = RNG.integers(-100, 100, 1000).astype(np.int8)
MOVED_CODES = (CODES + (RNG.random(1000) < 0.05)).astype(np.int8)
ROWS = RNG.normal(size=(8, 4)).astype(np.float32)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def one(array: Array) -> Samples:
    return [{"y": array}]


def judge(reference: Samples, candidate: Samples, contract: Contract) -> Verdict:
    return compare_outputs(reference, candidate).judge(gate_for(contract))


FAULTS: dict[str, tuple[Samples, Samples]] = {
    "dropped output": ([{"y": floats(1), "z": floats(2)}], [{"y": floats(1)}]),
    "extra output": ([{"y": floats(1)}], [{"y": floats(1), "z": floats(2)}]),
    "renamed output": ([{"y": floats(1)}], [{"w": floats(1)}]),
    "swapped outputs": (
        [{"y": floats(1), "z": floats(1)}],
        [{"z": floats(1), "y": floats(1)}],
    ),
    "float32 to float64": (one(floats(1, 2)), one(np.array([1, 2], np.float64))),
    "float32 to int64": (one(floats(1, 2)), one(np.array([1, 2], np.int64))),
    "rank 1 to 2": (one(floats(1, 1, 1)), one(np.ones((1, 3), np.float32))),
    "vector to scalar": (one(floats(1, 1, 1)), one(np.array(1, np.float32))),
    "NaN on one side": (one(floats(1, 2)), one(floats(1, np.nan))),
    "NaN lost": (one(floats(1, np.nan)), one(floats(1, 2))),
    "inf changes sign": (one(floats(1, np.inf)), one(floats(1, -np.inf))),
    "inf becomes finite": (one(floats(1, np.inf)), one(floats(1, 3))),
    "finite becomes inf": (one(floats(1, 3)), one(floats(1, np.inf))),
    "tiny output five times too large": (one(SMALL), one(np.multiply(SMALL, 5, dtype=np.float32))),
    "int64 off by one above 2**53": (
        one(np.array([2**53], np.int64)),
        one(np.array([2**53 + 1], np.int64)),
    ),
    "uint64 off by one at the top": (
        one(np.array([2**64 - 1], np.uint64)),
        one(np.array([2**64 - 2], np.uint64)),
    ),
    "uint8 wraps around": (one(np.array([0], np.uint8)), one(np.array([255], np.uint8))),
    "one of a million off": (one(LARGE), one(LARGE_WRONG)),
    "rows permuted": (one(ROWS), one(np.flip(ROWS, 0))),
    "string changed": (one(np.array(["a"], object)), one(np.array(["b"], object))),
    "fewer samples": ([{"y": floats(1)}, {"y": floats(2)}], [{"y": floats(1)}]),
    "more samples": ([{"y": floats(1)}], [{"y": floats(1)}, {"y": floats(2)}]),
    "bool flipped": (one(np.array([True, False])), one(np.array([True, True]))),
    "sign in the second sample only": (
        [{"y": floats(1)}, {"y": floats(2)}],
        [{"y": floats(1)}, {"y": floats(-2)}],
    ),
    "doubled": (one(ROWS), one(2 * ROWS)),
}

HARMLESS: dict[str, tuple[Samples, Samples, Contract]] = {
    "NaN in both": (one(floats(1, np.nan)), one(floats(1, np.nan)), Contract.EXACT),
    "inf in both": (one(floats(1, np.inf)), one(floats(1, np.inf)), Contract.EXACT),
    "empty tensor": (
        one(np.zeros((0, 3), np.float32)),
        one(np.zeros((0, 3), np.float32)),
        Contract.EXACT,
    ),
    "reordered sums with cancellation": (one(LOGITS), one(REORDERED), Contract.REASSOCIATED),
    "bfloat16 one ULP": (
        one(np.array([1.0, 100.0], ml_dtypes.bfloat16)),
        one(np.array([1.0078125, 100.5], ml_dtypes.bfloat16)),
        Contract.REASSOCIATED,
    ),
    "int8 one step on 5 %": (one(CODES), one(MOVED_CODES), Contract.INTEGER),
    "zeros in both": (
        one(np.zeros(3, np.float32)),
        one(np.zeros(3, np.float32)),
        Contract.APPROXIMATE,
    ),
    "noise where the output is zero": (
        one(floats(0, 0)),
        one(floats(0, 1e-9)),
        Contract.REASSOCIATED,
    ),
}

STRICT = [Contract.EXACT, Contract.REASSOCIATED, Contract.INTEGER, Contract.ADDITIVE]


# Half a unit once in a million is far below the noise of an int8 network.
BELOW_INTEGER_NOISE = ("one of a million off", Contract.INTEGER)
PLANTED = [(f, c) for f in FAULTS for c in STRICT if (f, c) != BELOW_INTEGER_NOISE]


@pytest.mark.parametrize(("fault", "contract"), PLANTED)
def test_fault_is_rejected(fault: str, contract: Contract) -> None:
    verdict = judge(*FAULTS[fault], contract)
    assert verdict.status == "failed"
    assert verdict.reasons
    assert all("'" in each or "samples" in each or "order" in each for each in verdict.reasons)


@pytest.mark.parametrize("change", HARMLESS)
def test_harmless_change_is_accepted(change: str) -> None:
    reference, candidate, contract = HARMLESS[change]
    verdict = judge(reference, candidate, contract)
    assert verdict.passed, verdict.reasons


@pytest.mark.parametrize("contract", list(Contract))
def test_no_sample_decides_nothing(contract: Contract) -> None:
    with pytest.raises(InconclusiveError, match="there is no sample"):
        judge([], [], contract)


def test_no_output_decides_nothing() -> None:
    with pytest.raises(InconclusiveError, match="no outputs"):
        judge([{}], [{}], Contract.EXACT)


def test_sign_of_zero_is_not_bit_identical() -> None:
    verdict = judge(one(floats(0.0)), one(floats(-0.0)), Contract.EXACT)
    assert verdict.reasons == (
        "output 'y': count of elements that are not identical is 1, wanted 0 "
        "(sample 0, index [0]: reference 0, candidate -0)",
    )
    assert judge(one(floats(0.0)), one(floats(-0.0)), Contract.REASSOCIATED).passed


def test_sequences_and_maps_are_compared_element_by_element() -> None:
    reference = {"z": [{4: 0.25, 7: 0.75}, {4: 0.5, 7: 0.5}]}
    same = {"z": [{4: 0.25, 7: 0.75}, {4: 0.5, 7: 0.5}]}
    other_value = {"z": [{4: 0.25, 7: 0.75}, {4: 0.5, 7: 0.25}]}
    other_label = {"z": [{4: 0.25, 8: 0.75}, {4: 0.5, 7: 0.5}]}
    shorter = {"z": [{4: 0.25, 7: 0.75}]}
    gate = gate_for(Contract.REASSOCIATED)
    assert compare_outputs([reference], [same]).judge(gate).passed
    for changed, where in ((other_value, "z[1].values"), (other_label, "z[0].keys")):
        (reason,) = compare_outputs([reference], [changed]).judge(gate).reasons[:1]
        assert where in reason
    assert not compare_outputs([reference], [shorter]).judge(gate).passed


def test_added_output_is_allowed_where_the_contract_adds() -> None:
    comparer = compare_outputs(
        [{"y": floats(1)}], [{"y": floats(1), "loss": floats(2)}], additive=True
    )
    assert comparer.judge(gate_for(Contract.ADDITIVE)).passed
    assert list(comparer.metrics) == ["y"]
