"""Random fake-quantized graphs over all ops: what every fold of them owes, on every target."""

from __future__ import annotations

import pytest

from fixtures.fake_quant.search import TARGETS, check_many


@pytest.mark.parametrize("target", TARGETS)
def test_random_graphs(target: str) -> None:
    tally = check_many(target, 75, 1)
    assert tally.graphs >= 75
    assert not tally.broken()
