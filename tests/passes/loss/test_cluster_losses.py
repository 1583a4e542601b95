"""Information shared by clusters and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxfold.passes.errors import UsageError

Array = npt.NDArray[Any]
Run = Callable[..., Array]
Build = Callable[..., Any]
NMI = "normalized-mutual-information"

CLUSTERS = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]], np.float32)
LABELS = np.array([0, 0, 1, 1])


def information(joint: Array) -> tuple[float, float]:
    """I and 2 I / (H_y + H_c), by their definitions in float64."""
    y, c = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    there = joint > 0
    shared = float((joint * np.log(np.where(there, joint / (y * c), 1))).sum())
    entropies = -sum(float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (y, c))
    return shared, 2 * shared / entropies


def test_soft_clusters_and_soft_labels(run_variant: Run) -> None:
    targets = np.array([[0.7, 0.2, 0.1], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]], np.float32)
    joint: Array = np.einsum("nl,nc->lc", targets, CLUSTERS, dtype=np.float64) / 4
    shared, normalized = information(joint)
    options = "{classes=3 soft-targets}"
    found = run_variant(f"mutual-information{options}", CLUSTERS, targets)
    np.testing.assert_allclose(found, shared, rtol=1e-6)
    found = run_variant(f"{NMI}{options}", CLUSTERS, targets)
    np.testing.assert_allclose(found, normalized, rtol=1e-6)


def test_a_class_that_is_absent_is_no_trouble(run_variant: Run) -> None:
    found = run_variant(f"{NMI}{{classes=5}}", CLUSTERS, LABELS)
    np.testing.assert_allclose(found, 0.2832385080629428, rtol=1e-6)


def test_the_likeliest_cluster_alone(run_variant: Run) -> None:
    np.testing.assert_allclose(
        run_variant(f"{NMI}{{assignments=hard}}", CLUSTERS, LABELS), 1, rtol=1e-6
    )
    np.testing.assert_allclose(
        run_variant("mutual-information{assignments=hard}", CLUSTERS, LABELS), np.log(2), rtol=1e-6
    )


def test_logits(run_variant: Run) -> None:
    found = run_variant(f"{NMI}{{from-logits}}", np.log(CLUSTERS), LABELS)
    np.testing.assert_allclose(found, 0.2832385080629428, rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_one_cluster_and_one_label(run_variant: Run, samples: int) -> None:
    alone = np.eye(2, dtype=np.float32)[[0] * samples]
    zeros = np.zeros(samples, np.int64)
    assert run_variant(NMI, alone, zeros) == 1
    assert run_variant("mutual-information", alone, zeros) == 0


def test_one_cluster_for_two_labels_tells_nothing(run_variant: Run) -> None:
    alone = np.eye(2, dtype=np.float32)[[0] * 4]
    np.testing.assert_allclose(run_variant(NMI, alone, LABELS), 0, atol=1e-6)


@pytest.mark.parametrize("bad", [-1, 2])
def test_a_label_that_is_no_class_is_no_number(run_variant: Run, bad: int) -> None:
    for name in (NMI, "mutual-information"):
        assert np.isnan(run_variant(name, CLUSTERS, np.array([0, 0, 1, bad])))


def test_clusters_are_two_dimensional(build: Build) -> None:
    with pytest.raises(UsageError, match="cluster probabilities must have 2 dimensions, not 3"):
        build(NMI, [np.zeros((2, 3, 4), np.float32)])
