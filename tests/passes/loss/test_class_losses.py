"""Losses over classes: bad labels, nothing to average, options that say the same."""

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
SPARSE = "sparse-softmax-cross-entropy"


def f32(*rows: Any) -> Array:
    return np.array(rows, np.float32)


LOGITS = f32([1, 2, 3], [0, 0, 1], [5, -1, 2], [2, 2, 2])


@pytest.mark.parametrize("bad", [-1, 3, -4, 2**40, -(2**62)])
def test_a_label_that_is_no_class_is_no_number(run_variant: Run, bad: int) -> None:
    labels = np.array([2, bad, 0, 1])
    losses = run_variant(f"{SPARSE}{{reduction=none}}", LOGITS, labels)
    assert np.isnan(losses).tolist() == [False, True, False, False]
    for reduction in ("mean", "sum"):
        assert np.isnan(run_variant(f"{SPARSE}{{reduction={reduction}}}", LOGITS, labels))
    for options in ("class-weights=1,2,3", "label-smoothing=0.1", "ignore-index=9"):
        assert np.isnan(run_variant(f"{SPARSE}{{{options}}}", LOGITS, labels))


def test_an_ignored_label_counts_nothing_even_where_it_is_a_class(run_variant: Run) -> None:
    kept = run_variant(SPARSE, LOGITS[:2], np.array([2, 1]))
    for ignored in (-100, 0):
        labels = np.array([2, 1, ignored, ignored])
        found = run_variant(f"{SPARSE}{{ignore-index={ignored}}}", LOGITS, labels)
        np.testing.assert_allclose(found, kept, rtol=1e-6)


def test_nothing_to_average_is_nothing(run_variant: Run) -> None:
    ignored = np.array([-100] * 4)
    assert run_variant(f"{SPARSE}{{ignore-index=-100}}", LOGITS, ignored) == 0
    weightless = np.zeros(4, np.float32)
    assert run_variant(f"{SPARSE}{{weighted}}", LOGITS, np.array([0, 1, 2, 0]), weightless) == 0


def test_an_empty_batch(run: Run) -> None:
    none, labels = LOGITS[:0], np.zeros(0, np.int64)
    assert run(f"{SPARSE}{{reduction=none}}", none, labels, dynamic=True).shape == (0,)
    assert run(f"{SPARSE}{{reduction=sum}}", none, labels, dynamic=True) == 0
    assert run("mse{reduction=sum}", none, none, dynamic=True) == 0


def test_int32_labels(run_variant: Run) -> None:
    labels = np.array([2, 1, 0, 1])
    found = run_variant(f"{SPARSE}{{label-dtype=int32}}", LOGITS, labels.astype(np.int32))
    assert found == run_variant(SPARSE, LOGITS, labels)


def test_the_class_axis_of_images(run_variant: Run) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, (2, 4, 5))
    first = run_variant(f"{SPARSE}{{axis=1 reduction=none}}", images, labels)
    last = run_variant(f"{SPARSE}{{reduction=none}}", images.transpose(0, 2, 3, 1).copy(), labels)
    np.testing.assert_allclose(first, last, rtol=1e-6, atol=1e-7)
    weights = "class-weights=1,2,3 label-smoothing=0.2"
    smooth = run_variant(f"{SPARSE}{{axis=1 {weights}}}", images, labels)
    moved = run_variant(f"{SPARSE}{{{weights}}}", images.transpose(0, 2, 3, 1).copy(), labels)
    np.testing.assert_allclose(smooth, moved, rtol=1e-6)


def test_soft_labels_of_images(run_variant: Run) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, (2, 4, 5))
    weights = np.random.default_rng(2).random((2, 4, 5), np.float32)
    soft = np.stack([labels == each for each in range(3)], 1).astype(np.float32)
    options = "axis=1 weighted label-smoothing=0.1"
    found = run_variant(f"softmax-cross-entropy{{{options}}}", images, soft, weights)
    expected = run_variant(f"{SPARSE}{{{options}}}", images, labels, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_temperature_divides_the_logits(run: Run) -> None:
    labels = np.array([2, 1, 0, 1])
    warm = run(f"{SPARSE}{{temperature=4}}", LOGITS, labels)
    np.testing.assert_allclose(warm, run(SPARSE, LOGITS / 4, labels), rtol=1e-6)


def test_probabilities_are_taken_as_they_are(run_variant: Run) -> None:
    p = f32([0.25, 0.75], [1, 0])
    text = f"{SPARSE}{{from-probabilities reduction=none}}"
    found = run_variant(text, p, np.array([0, 1]))
    np.testing.assert_allclose(found, -np.log([0.25, 1e-37]), rtol=1e-6)
    binary = run_variant("bce-with-logits{from-probabilities reduction=none}", p, p)
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    np.testing.assert_allclose(binary, [[entropy] * 2, [0, 0]], rtol=1e-6)


def test_masked_classes(run_variant: Run) -> None:
    masked = f32([0, 1, -np.inf])
    soft = run_variant("softmax-cross-entropy", masked, f32([0.5, 0.5, 0]))
    np.testing.assert_allclose(
        soft, run_variant("softmax-cross-entropy", masked[:, :2], f32([0.5, 0.5]))
    )
    halves = f32([0.5, 0.5, 0])
    for direction in ("forward", "reverse"):
        text = f"kl-divergence{{direction={direction}}}"
        found = run_variant(text, masked, halves)
        np.testing.assert_allclose(
            found, run_variant(text, masked[:, :2], halves[:, :2]), rtol=1e-6
        )
    student = run_variant("distillation", masked, masked)
    assert student == 0


def test_one_class_is_none(build: Build) -> None:
    for text in (SPARSE, "softmax-cross-entropy", "kl-divergence", "distillation"):
        with pytest.raises(UsageError, match=r"1 classes on axis .*take bce-with-logits"):
            build(text, [np.zeros((4, 1), np.float32)])


def test_a_confident_right_answer_keeps_its_small_loss(run: Run) -> None:
    found = run("bce-with-logits{reduction=none}", f32(15, -15), f32(1, 0))
    np.testing.assert_allclose(found, [np.log1p(np.exp(-15))] * 2, rtol=1e-5)


def test_logits_of_a_thousand_in_float64(run: Run) -> None:
    """Where a runtime has no kernel it takes the operator's definition, which overflows."""
    x, t = np.array([1000.0, -1000, 0]), np.array([0.0, 0, 1])
    found = run("bce-with-logits{reduction=none}", x, t, dynamic=True)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [1000, 0, np.log(2)], rtol=1e-12)


def test_focal_without_focus_is_half_of_cross_entropy(run: Run) -> None:
    x, t = f32(0.3, -2, 4), f32(1, 0, 0)
    found = run("focal{gamma=0 alpha=0.5}", x, t)
    np.testing.assert_allclose(2 * found, run("bce-with-logits", x, t), rtol=1e-6)
    assert run("focal{gamma=0 alpha=-1}", x, t) == run("bce-with-logits", x, t)


def test_distillation_between_logits(run: Run) -> None:
    student, teacher = f32([1, 2, 3]), f32([1, 0, 3])
    np.testing.assert_allclose(run("distillation{kind=mse}", student, teacher), 4 / 3, rtol=1e-6)
    assert run("distillation{temperature=3}", student, student) == 0
    labels = np.array([-1])
    assert np.isnan(run("distillation{alpha=0.5}", student, teacher, labels))
