from __future__ import annotations

import gc

import pytest

from onnxfold.passes.collector import paused_collector


def test_the_collector_is_paused_and_comes_back() -> None:
    assert gc.isenabled()
    with paused_collector():
        assert not gc.isenabled()
        with paused_collector():
            pass
        assert not gc.isenabled(), "the outer block is not over"
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error() -> None:
    with pytest.raises(KeyError), paused_collector():
        raise KeyError
    assert gc.isenabled()
