"""Random fake-quantized graphs over all ops: what every fold of them owes, on every target."""

from __future__ import annotations

import pytest

from fixtures.fake_quant.search import TARGETS, check_many


def _hold(examples: int, number: int) -> None:
    tallies = check_many(examples, number)
    assert {*tallies} == {*TARGETS}
    for tally in tallies.values():
        assert tally.graphs >= examples
        assert not tally.broken()


def test_random_graphs() -> None:
    _hold(75, 1)


@pytest.mark.slow
def test_many_random_graphs() -> None:
    _hold(1175, 2)
