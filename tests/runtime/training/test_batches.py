"""Batches: every sample once an epoch, in an order that can be repeated."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.training import Batches

ARRAYS = {"x": np.arange(20).reshape(10, 2), "labels": np.arange(10)}


def test_every_sample_once_and_rows_stay_together() -> None:
    batches = Batches(ARRAYS, 4)
    found = list(batches)
    assert [len(feed["x"]) for feed in found] == [4, 4, 2]
    labels = np.concatenate([feed["labels"] for feed in found])
    assert sorted(labels.tolist()) == list(range(10))
    assert all(np.array_equal(feed["x"][:, 0], 2 * feed["labels"]) for feed in found)
    assert len(batches) == 3


def test_epochs_differ_and_repeat() -> None:
    batches, same = Batches(ARRAYS, 10, seed=3), Batches(ARRAYS, 10, seed=3)
    orders = [next(iter(batches))["labels"].tolist() for _ in range(3)]
    assert orders[0] != orders[1] != orders[2]
    same.epoch = 2
    assert next(iter(same))["labels"].tolist() == orders[2]


def test_in_order_without_the_rest() -> None:
    batches = Batches(ARRAYS, 4, seed=None, drop_last=True)
    found = [feed["labels"].tolist() for feed in batches]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(batches) == 2


def test_wrong_arrays() -> None:
    with pytest.raises(UsageError, match="equally long, got 'x' 10, 'labels' 3"):
        Batches({**ARRAYS, "labels": np.arange(3)}, 4)
    with pytest.raises(UsageError, match="equally long, got none"):
        Batches({}, 4)
    with pytest.raises(UsageError, match="no batch of 0"):
        Batches(ARRAYS, 0)
    with pytest.raises(UsageError, match="no batch of 11 can be cut from 10 samples"):
        Batches(ARRAYS, 11, drop_last=True)
