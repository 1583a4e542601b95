"""Rendered text lines: preprocessing, orientation pairs, disjoint sets, no system fonts needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.textline_orientation import dataset
from examples.textline_orientation.dataset import preprocess
from fixtures.text_lines import text_lines


def test_short_lines_keep_their_aspect_and_are_padded_with_zeros() -> None:
    line = Image.new("RGB", (20, 12), (255, 0, 51))
    image = preprocess(line)
    assert image.shape == (3, 48, 192)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[:, 0, 79], [1.0, -1.0, -0.6], atol=1e-6)
    assert not image[:, :, 80:].any()


def test_long_lines_are_squeezed_to_the_full_width() -> None:
    image = preprocess(Image.new("RGB", (900, 20), (255, 255, 255)))
    assert (image == 1).all()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CALIBRATION_LINES", 8)
    monkeypatch.setattr(dataset, "EVALUATION_LINES", 16)


@pytest.mark.usefixtures("few")
def test_sets_are_repeatable_pairs_without_system_fonts() -> None:
    calibration, evaluation = dataset.build([])
    assert calibration.inputs.shape == (16, 3, 48, 192)
    assert evaluation.labels.tolist() == [0, 1] * 16
    again, _ = dataset.build([])
    np.testing.assert_array_equal(calibration.inputs, again.inputs)
    assert calibration.inputs.std() > 0.1


def test_lines_are_different_and_sizes_disjoint() -> None:
    lines = text_lines(np.random.default_rng(0), 600)
    assert len(set(lines)) == 600
    assert not set(dataset.CALIBRATION_SIZES) & set(dataset.EVALUATION_SIZES)


def test_missing_font_folder_means_no_fonts(tmp_path: Path) -> None:
    assert dataset.system_fonts(tmp_path / "none") == []
