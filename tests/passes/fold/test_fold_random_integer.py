"""Many random graphs, folded for one target: a file each, so that cores share them."""

from __future__ import annotations

import pytest

from fixtures.fake_quant.search import check_many


@pytest.mark.slow
def test_many_random_graphs() -> None:
    tally = check_many("integer", 1175, 2)
    assert tally.graphs >= 1175
    assert not tally.broken()
