"""The training examples: each learns its task on real data; figures and pictures are right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from examples.training import (
    classify_digits,
    cluster_digits,
    restore_colours,
    retrieve_halves,
    robust_regression,
    vae_digits,
)
from examples.training.data import diabetes, digits
from examples.training.pictures import draw_chart, draw_grid
from examples.training.task import Task, main
from fixtures.fetch import DownloadError, fetch

_DIGITS = ("digits",)
_DIABETES = ("diabetes-data", "diabetes-target")
_PHOTOGRAPHS = ("photo-china", "photo-astronaut")


def _learned(
    task: Task, needed: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> Mapping[str, tuple[float, float]]:
    """What the task prints, by name: before and after."""
    try:
        for name in needed:
            fetch(name)
    except DownloadError as error:
        pytest.skip(str(error))
    assert main(task, ["--json", "--output", str(folder)]) == 0
    document = json.loads(capsys.readouterr().out)
    with Image.open(document["picture"]) as image:
        assert min(image.size) > 100
    assert all(onnx.load(path).graph.node for path in folder.glob("*.onnx"))
    return {each["name"]: (each["before"], each["after"]) for each in document["figures"]}


@pytest.mark.network
@pytest.mark.slow
def test_digits_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _learned(classify_digits.TASK, _DIGITS, tmp_path, capsys)
    before, after = found["accuracy, %"]
    assert before < 25
    assert after > 96
    assert found["cross-entropy, nats"][1] < 0.15


@pytest.mark.network
@pytest.mark.slow
def test_digits_are_sorted_into_heaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _learned(cluster_digits.TASK, _DIGITS, tmp_path, capsys)
    before, after = found["normalized mutual information"]
    assert before < 0.5
    assert after > 0.8
    assert found["purity, %"][1] > 70


@pytest.mark.network
@pytest.mark.slow
def test_digits_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _learned(vae_digits.TASK, _DIGITS, tmp_path, capsys)
    before, after = found["negative ELBO, nats a digit"]
    assert before > 50
    assert after < 26


@pytest.mark.network
@pytest.mark.slow
def test_halves_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _learned(retrieve_halves.TASK, _DIGITS, tmp_path, capsys)
    for name in ("all-pairs", "cosine negatives"):
        before, after = found[f"{name}: among the first 10, %"]
        assert before < 10
        assert after > 75


@pytest.mark.network
@pytest.mark.slow
def test_winsorizing_keeps_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _learned(robust_regression.TASK, _DIABETES, tmp_path, capsys)
    plain, winsorized = found["R^2 on the data without"]
    assert plain < 0.05
    assert winsorized > 0.3
    # Training finds what least squares finds in closed form.
    table, illness = diabetes()
    index = robust_regression.with_errors(table[:, 2:3])
    line = np.column_stack([index, np.ones(len(index))])
    best, *_ = np.linalg.lstsq(line, illness, rcond=None)
    expected = robust_regression.r_squared(illness, line @ best)
    assert found["R^2 on the data with errors"][0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.network
@pytest.mark.slow
def test_colours_are_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _learned(restore_colours.TASK, _PHOTOGRAPHS, tmp_path, capsys)
    gains = [after - before for before, after in found.values()]
    assert min(gains) > 1.5


@pytest.mark.network
def test_the_digits_are_those_of_scikit_learn() -> None:
    try:
        data = digits()
    except DownloadError as error:
        pytest.skip(str(error))
    assert data.images.shape == (1437, 64)
    assert data.held_out.shape == (360, 64)
    counts = np.bincount(np.concatenate([data.labels, data.held_out_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.images.min(), data.images.max()) == (0, 1)


def test_r_squared_is_that_of_statsmodels() -> None:
    # Winsorized regression of ten points, from scipy and statsmodels: see docs/losses.md.
    x = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 50.0])
    y = np.array([2.1, 3.9, 6.2, 7.8, 10.1, 12.2, 13.8, 16.1, 18, 21])
    clipped = np.clip(x, 2, 9)
    line = np.column_stack([clipped, np.ones(10)])
    best, *_ = np.linalg.lstsq(line, y, rcond=None)
    assert robust_regression.r_squared(y, line @ best) == pytest.approx(0.9765552455721891)
    original = np.column_stack([x, np.ones(10)])
    assert robust_regression.r_squared(y, original @ best) == pytest.approx(-22.659961557484362)


def test_bounds_are_those_of_winsorizing() -> None:
    values = np.arange(40, dtype=np.float32)
    assert robust_regression.winsorized_bounds(values) == (2, 37)


def test_mutual_information_of_heaps() -> None:
    truth = np.array([0, 0, 1, 1])
    same = cluster_digits.normalized_mutual_information(truth, np.array([5, 5, 3, 3]))
    assert same == pytest.approx(1)
    none = cluster_digits.normalized_mutual_information(truth, np.array([0, 1, 0, 1]))
    assert none == pytest.approx(0)


def test_a_grid_shows_grey_and_coloured_images(tmp_path: Path) -> None:
    grey, red = np.ones((4, 4)), np.zeros((3, 4, 4))
    red[0] = 1
    draw_grid({"grey": [grey], "red": [red, red]}, tmp_path / "grid.png", zoom=3)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == (300, 2 * (12 + 16 + 8))
        assert image.getpixel((6, 4 + 16 + 3)) == (0, 0, 0)
        assert image.getpixel((6, 36 + 4 + 16 + 3)) == (255, 0, 0)


def test_a_chart_shows_lines_and_dots(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    draw_chart("title", path, lines={"line": [(0, 0), (1, 1)]}, dots={"dots": [(0, 1)]})
    with Image.open(path) as image:
        middle, corner = image.getpixel((48 + 180, 48 + 180)), image.getpixel((48, 48))
    assert middle == (31, 95, 168)
    assert corner == (194, 87, 26)


def test_without_network_one_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def unavailable() -> None:
        raise DownloadError("digits: cannot download (is there a network?)")

    monkeypatch.setattr(classify_digits, "digits", unavailable)
    assert main(classify_digits.TASK, ["--output", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "classify_digits: digits: cannot download (is there a network?)\n"
