"""magika's data: features as magika's own code takes them, disjoint and repeatable sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.magika import dataset
from examples.magika.dataset import FeatureSpec, extract_features

SPEC = FeatureSpec(
    beg_size=4, end_size=4, block_size=8, padding_token=256, labels=("json", "python", "css")
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"abcdefghijkl", b"abcd|ijkl"),
        (b"  abcdefghi\n\n", b"abcd|fghi"),
        (b" ab ", b"ab ?|? ab"),
        (b"          x", b"????|   x"),
        (b"", b"????|????"),
    ],
)
def test_features_are_the_stripped_ends(tmp_path: Path, content: bytes, expected: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    head, tail = expected.split(b"|")
    wanted = [256 if each == ord("?") else each for each in head + tail]
    assert extract_features(path, SPEC).tolist() == wanted


def _tree(root: Path, count: int) -> Path:
    root.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        for extension in (".json", ".py", ".unknown"):
            name = random.integers(10**9)
            (root / f"{name}{extension}").write_bytes(random.bytes(200) if index else b"same" * 50)
    return root


def test_sets_are_disjoint_balanced_and_repeatable(tmp_path: Path) -> None:
    root = _tree(tmp_path / "a", 300)
    calibration, evaluation = dataset.build(SPEC, [root])
    rows = [row.tobytes() for part in (calibration, evaluation) for row in part.inputs]
    assert len(rows) == len(set(rows))
    assert len(calibration.labels) == len(rows) // 3
    assert set(evaluation.labels.tolist()) == {0, 1}
    again, _ = dataset.build(SPEC, [root])
    np.testing.assert_array_equal(calibration.inputs, again.inputs)


def test_the_cap_takes_rare_labels_whole() -> None:
    # 10 + 20 + 2 * 35 = 100: the rare labels give all they have.
    assert dataset._cap_that_fills(100, [10, 20, 50, 90]) == 35  # pyright: ignore[reportPrivateUsage]


def test_too_few_files_say_where_they_were_sought(tmp_path: Path) -> None:
    root = _tree(tmp_path / "b", 3)
    with pytest.raises(ValueError, match=f"labelled files found in {root}: 512 are needed"):
        dataset.build(SPEC, [root])


def test_links_and_short_files_are_left_out(tmp_path: Path) -> None:
    root = _tree(tmp_path / "c", 300)
    (root / "short.py").write_bytes(b"x = 1")
    (root / "link.css").symlink_to(next(root.glob("*.json")))
    calibration, evaluation = dataset.build(SPEC, [root])
    assert 2 not in {*calibration.labels.tolist(), *evaluation.labels.tolist()}
    assert not (np.concatenate([calibration.inputs, evaluation.inputs]) == 256).any()
