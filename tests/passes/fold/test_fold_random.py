"""Random fake-quantized graphs over all ops: what every fold of them owes, on every target."""

from __future__ import annotations

import random
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, reject, seed, settings
from hypothesis import strategies as st

from fixtures.fake_quant.contract import Tally, check_fold
from fixtures.fake_quant.drawing import UndrawableError
from fixtures.fake_quant.random_graph import draw
from fixtures.fake_quant.text import as_text
from onnxfold.passes.errors import OnnxfoldError

TARGETS = ("ort", "standard", "qdq", "integer")
_IGNORED: Any = tuple(HealthCheck)
_THOROUGH = 4  # every so many graphs are folded three times, and run whole


def _run(target: str, examples: int, number: int) -> Tally:
    """Check ``examples`` graphs; a failure is shrunk, and its model printed."""
    tally = Tally()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=_IGNORED,
    )
    @given(st.randoms(use_true_random=False))
    def check(choices: random.Random) -> None:
        drawing = draw(choices)
        try:
            check_fold(drawing, target, tally, thorough=choices.randrange(_THOROUGH) == 0)
        except UndrawableError:
            reject()
        except (AssertionError, OnnxfoldError, onnx.checker.ValidationError) as error:
            raise AssertionError(f"{error}\n{as_text(drawing.proto())}") from error

    check()
    return tally


@pytest.mark.parametrize("target", TARGETS)
def test_random_graphs(target: str) -> None:
    tally = _run(target, 75, 1)
    assert tally.graphs >= 75
    assert not tally.broken()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_random_graphs(target: str) -> None:
    tally = _run(target, 1275, 2)
    assert tally.graphs >= 1275
    assert not tally.broken()
