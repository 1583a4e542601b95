"""InputMoments as a value and as an option: sums, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.gptq import Gptq
from onnxfold.passes.quantize.input_moments import InputMoments, LayerMoments
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.spec import print_pass

Array = npt.NDArray[Any]


def _layer(seed: int = 0, exponents: tuple[int, ...] = (-4, 0), count: int = 3) -> LayerMoments:
    rng = np.random.default_rng(seed)
    vectors = {e: rng.integers(-50, 50, (2, count, 3)) for e in exponents}
    return LayerMoments(
        np.arange(12, dtype=np.float32).reshape(4, 3, 1),
        count * len(exponents),
        {e: x.sum(axis=1) for e, x in vectors.items()},
        {e: np.einsum("grk,grl->gkl", x, x) for e, x in vectors.items()},
    )


def test_grids_are_put_together() -> None:
    layer = LayerMoments(
        np.ones((1, 2), np.float32),
        4,
        {-1: np.array([[2, 4]]), 1: np.array([[1, 0]])},
        {-1: np.array([[[4, 8], [8, 16]]]), 1: np.array([[[1, 0], [0, 2]]])},
    )
    assert np.array_equal(layer.mean, np.array([[3, 2]]) / 4)
    assert np.array_equal(layer.second, np.array([[[5, 2], [2, 12]]]) / 4)
    assert np.array_equal(layer.diagonal, np.array([[5, 12]]) / 4)
    diagonal = {e: np.einsum("gkk->gk", each) for e, each in layer.products.items()}
    narrow = LayerMoments(layer.weights, 4, layer.sums, diagonal)
    assert layer.full
    assert not narrow.full
    assert np.array_equal(narrow.second, layer.diagonal)
    assert np.array_equal(narrow.diagonal, layer.diagonal)


def test_every_bit_survives_a_file(tmp_path: Path) -> None:
    moments = InputMoments({"b": _layer(), "a": _layer(1, (3,))})
    assert list(moments) == ["a", "b"]
    saved = moments.save(tmp_path / "moments.npz")
    assert saved == moments
    assert hash(saved) == hash(moments)
    loaded = InputMoments.from_text(saved.to_text())
    assert loaded == moments
    assert loaded["b"].second.tobytes() == moments["b"].second.tobytes()
    again = moments.save(tmp_path / "again.npz")
    assert again.path is not None
    assert again.path.read_bytes() == (tmp_path / "moments.npz").read_bytes()
    assert moments != InputMoments({"b": _layer(2), "a": _layer(1, (3,))})


def test_as_an_option_of_the_pass(tmp_path: Path) -> None:
    saved = InputMoments({"a": _layer()}).save(tmp_path / "moments.npz")
    (parsed,) = parse_passes(print_pass(Gptq(saved, sweeps=3)))
    assert parsed == Gptq(saved, sweeps=3)
    with pytest.raises(UsageError, match="save"):
        InputMoments({"a": _layer()}).to_text()


def test_shards_merge_to_the_same_bits_in_any_order() -> None:
    shards = [InputMoments({"a": _layer(seed, exponents)}) for seed, exponents in
              enumerate([(0,), (-4, 0), (4,), (-4,)])]  # fmt: skip
    forwards = shards[0].merge(shards[1]).merge(shards[2]).merge(shards[3])
    pairs = shards[3].merge(shards[1]).merge(shards[2].merge(shards[0]))
    assert forwards == pairs
    assert forwards["a"].count == sum(each["a"].count for each in shards)
    assert forwards["a"].second.tobytes() == pairs["a"].second.tobytes()


def test_moments_of_different_models_do_not_merge() -> None:
    moments = InputMoments({"a": _layer()})
    with pytest.raises(UsageError, match="different models"):
        moments.merge(InputMoments({"b": _layer()}))
    other = _layer()
    changed = LayerMoments(other.weights + 1, other.count, other.sums, other.products)
    with pytest.raises(UsageError, match="different models"):
        moments.merge(InputMoments({"a": changed}))


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        InputMoments.load(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("moments")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "other.npz", names=np.array(["a"]))
    np.savez(tmp_path / "format.npz", format=np.array("another"))
    for name in ("text", "torn", "other", "format"):
        with pytest.raises(UsageError, match=f"{name}.npz: not a file of input moments"):
            InputMoments.load(tmp_path / f"{name}.npz")
