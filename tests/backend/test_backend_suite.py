from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import rewriting_backend as backend

from onnxfold.passes.presets import OPTIMIZE, SIMPLIFY

SHARDS = 20
LEAST_COMPARED = 60
"""Of about 100 cases a shard; fewer would mean that the corpus or the runtime is not there."""

# onnx computes expected outputs with overflowing numpy casts when it generates its cases.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def shards() -> list[object]:
    rest = [pytest.param(index, marks=pytest.mark.slow) for index in range(1, SHARDS)]
    return [0, *rest]


@pytest.mark.parametrize("shard", shards())
def test_rewritten_cases_compute_what_the_originals_compute(shard: int) -> None:
    compared = 0
    problems: list[str] = []
    for case in backend.all_cases()[shard::SHARDS]:
        wanted = backend.reference_outputs(case)
        if wanted is None:
            continue
        compared += 1
        problems += regressions(case, wanted)
    assert not problems, "\n".join(problems)
    assert compared >= LEAST_COMPARED


def regressions(case: backend.Case, wanted: object) -> list[str]:
    pipelines = {SIMPLIFY: (0.0, 0.0)}
    if OPTIMIZE != SIMPLIFY:
        pipelines[OPTIMIZE] = (case.rtol, case.atol)
    problems: list[str] = []
    seen: set[bytes] = set()
    for pipeline, (rtol, atol) in pipelines.items():
        try:
            rewritten = backend.rewrite(case.model, pipeline)
            content = rewritten.SerializeToString(deterministic=True)
            if content in seen:
                continue
            seen.add(content)
            problem = backend.difference(wanted, backend.run(rewritten, case), rtol, atol)
        except Exception as error:  # noqa: BLE001 - every failure is a regression
            problem = f"{type(error).__name__}: {error}"
        if problem:
            problems.append(f"{case.name}: {problem}")
    return problems


def test_the_comparison_sees_one_bit() -> None:
    array = np.array([0.0, 1.0, np.nan], dtype=np.float32)
    other = np.array([-0.0, 1.0, np.nan], dtype=np.float32)
    assert backend.difference([[array]], [[array.copy()]], 0, 0) == ""
    assert backend.difference([[array]], [[other]], 0, 0) != ""
    assert backend.difference([[array]], [[np.nextafter(array, np.float32(2))]], 0, 0) != ""
    assert backend.difference([[array]], [[array], [array]], 0, 0) != ""
    assert backend.difference([[array]], [[array.astype(np.float64)]], 0, 0) != ""
