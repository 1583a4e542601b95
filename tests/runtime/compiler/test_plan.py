from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.gptq import Gptq
from onnxfold.passes.quantize.input_moments import InputMoments, LayerMoments
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.compiler.plan import Plan

RANGES = Ranges({'odd "name", {x}=1': (-0.1, 1 / 3), "y": (0.0, 1e-30)})
PLAN = Plan(
    "ab" * 32,
    (*parse_passes("remove-identity"), InsertQdq(RANGES, skip=("a b", "c,d"))),
    ({"candidate": "x"},),
)


def test_a_plan_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == PLAN
    assert loaded.decisions == PLAN.decisions


def test_large_arrays_lie_beside_the_plan_wherever_it_is_moved(tmp_path: Path) -> None:
    sums, products = {0: np.array([[3, 4]])}, {0: np.array([[[5, 6], [6, 7]]])}
    layer = LayerMoments(np.ones((2, 2), np.float32), 2, sums, products)
    plan = replace(PLAN, passes=(*PLAN.passes, Gptq(InputMoments({"dense": layer}))))
    plan.save(tmp_path / "there" / "plan.json")
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    loaded = Plan.load(tmp_path / "elsewhere" / "plan.json")
    assert loaded == plan
    files = json.loads((tmp_path / "elsewhere" / "plan.json").read_text())["files"]
    assert files == ["plan-2-moments.npz"]
    (tmp_path / "elsewhere" / files[0]).unlink()
    with pytest.raises(UsageError, match=r"elsewhere/plan-2-moments\.npz: no such file"):
        Plan.load(tmp_path / "elsewhere" / "plan.json")


def test_a_plan_is_for_one_model() -> None:
    PLAN.check_model("ab" * 32)
    with pytest.raises(UsageError, match="made for another model"):
        PLAN.check_model("cd" * 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "onnxfold-plan", "version": 2}',
        '{"format": "onnxfold-plan", "version": 1}',
    ],
)
def test_what_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"plan\.json"):
        Plan.load(path)


def test_a_missing_plan_and_an_unknown_pass_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such plan"):
        Plan.load(tmp_path / "plan.json")
    PLAN.save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    document["passes"][0] = "remove-identty"
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="remove-identity"):
        Plan.load(tmp_path / "plan.json")
