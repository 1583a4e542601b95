"""calibrate: true ranges of every tensor, one feed at a time, and clear errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.runtime.calibrate.calibrate import calibrate, collect
from onnxfold.runtime.calibrate.methods import METHODS

Parse = Callable[..., ir.Model]
Feed = dict[str, npt.NDArray[Any]]

MODEL = """
g (float[N,2] x, bool b) => (float[N,2] y)
<float[2,2] w = {1, 2, -3, 4}>
{
  m = MatMul(x, w)
  r = Relu(m)
  y = If (b) <then_branch = yes () => (float[N,2] p) { p = Neg(r) },
              else_branch = no () => (float[N,2] q) { q = Sqrt(r) }>
}
"""
W = np.array([[1, 2], [-3, 4]], np.float32)


def _feeds(count: int = 6, seed: int = 0) -> Iterator[Feed]:
    rng = np.random.default_rng(seed)
    for index in range(count):
        x = rng.normal(size=(index % 3 + 1, 2)).astype(np.float32)
        yield {"x": x, "b": np.array(index % 2 == 0)}


def test_min_max_is_that_of_all_batches_whatever_their_size(parse: Parse) -> None:
    ranges = calibrate(parse(MODEL), ["x", "m", "r"], _feeds())
    x = np.concatenate([feed["x"] for feed in _feeds()])
    assert ranges["x"] == (x.min(), x.max())
    assert ranges["m"] == pytest.approx(((x @ W).min(), (x @ W).max()), rel=1e-6)
    assert ranges["r"] == (0.0, pytest.approx((x @ W).max(), rel=1e-6))
    assert ranges.notes == ()


def test_percentile_cuts_outliers_and_100_is_min_max(parse: Parse) -> None:
    def feeds() -> Iterator[Feed]:
        for feed in _feeds(400):
            feed["x"][0, 0] = 50.0 if feed["x"].size == 6 and feed["x"][0, 0] > 1.5 else 0.0
            yield feed

    whole = calibrate(parse(MODEL), ["x"], feeds())
    cut = calibrate(parse(MODEL), ["x"], feeds(), method="percentile{percentile=95}")
    everything = calibrate(parse(MODEL), ["x"], feeds(), method="percentile{percentile=100}")
    assert whole["x"][1] == 50.0
    assert cut["x"][1] < 5.0
    assert everything == whole


@pytest.mark.parametrize("method", METHODS)
def test_two_shards_and_eight_merge_to_the_same_bits(parse: Parse, method: str) -> None:
    model = parse(MODEL)
    feeds = list(_feeds(25))
    whole = calibrate(model, ["x", "m", "r"], feeds, method=method)
    for count in (2, 8):
        merged, *others = (
            collect(model, ["x", "m", "r"], feeds[i::count], method=method, shard=(i, count))
            for i in range(count)
        )
        for each in reversed(others):
            merged.merge(each)
        assert merged.ranges().to_text() == whole.to_text()


def test_shards_of_different_calibrations_do_not_merge(parse: Parse) -> None:
    model, feeds = parse(MODEL), list(_feeds())
    first = collect(model, ["m"], feeds, method="percentile")
    for tensor, method in (("m", "percentile{percentile=99}"), ("r", "percentile"), ("m", "mse")):
        with pytest.raises(UsageError, match="same method, same tensors"):
            first.merge(collect(model, [tensor], feeds, method=method))


def test_the_sample_of_a_shard_is_named_by_its_number_in_all_data(parse: Parse) -> None:
    feeds = list(_feeds(9))
    feeds[7]["x"][0, 0] = np.nan
    with pytest.raises(InvalidModelError, match=r"'x' has NaN on calibration sample 7"):
        collect(parse(MODEL), ["x"], feeds[1::3], shard=(1, 3))


def test_bounded_operators_have_their_bounds_and_are_not_observed(parse: Parse) -> None:
    model = parse("""
    g (float[N,4] x) => (float[N,4] y) {
      s = Sigmoid(x) t = Tanh(x) p = Softmax(x) y = Neg(x)
    }""")
    feeds = [{"x": np.full((2, 4), 0.5, np.float32)}]
    ranges = calibrate(model, ["s", "t", "p", "y"], feeds)
    expected = {"s": (0.0, 1.0), "t": (-1.0, 1.0), "p": (0.0, 1.0), "y": (-0.5, -0.5)}
    assert dict(ranges) == expected
    assert set(collect(model, ["s", "t", "p", "y"], feeds).observers) == {"y"}


def test_the_model_is_not_changed(parse: Parse) -> None:
    model = parse(MODEL)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    calibrate(model, ["m", "y"], _feeds())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_what_no_graph_computes_is_left_out_with_a_note(parse: Parse) -> None:
    ranges = calibrate(parse(MODEL), ["m", "w"], _feeds())
    assert list(ranges) == ["m"]
    assert ranges.notes == ("tensor 'w' is a constant: not calibrated",)


def test_a_tensor_that_was_always_empty_is_left_out_with_a_note(parse: Parse) -> None:
    feed = {"x": np.zeros((0, 2), np.float32), "b": np.array(True)}
    ranges = calibrate(parse(MODEL), ["m"], [feed])
    assert not ranges
    assert ranges.notes == ("tensor 'm' never had a value",)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_nan_and_infinity_name_tensor_and_sample(
    parse: Parse, method: str, value: float, word: str
) -> None:
    def feeds() -> Iterator[Feed]:
        for index, feed in enumerate(_feeds()):
            if index == 4:
                feed["x"][-1, -1] = value
            yield feed

    with pytest.raises(InvalidModelError, match=rf"'m' has {word}.* on calibration sample 4"):
        calibrate(parse(MODEL), ["m"], feeds(), method=method)


def test_an_unknown_tensor_is_an_error_with_a_suggestion(parse: Parse) -> None:
    model = parse("g (float[2] x) => (float[2] y) { hidden = Neg(x) y = Neg(hidden) }")
    with pytest.raises(UsageError, match="no tensor 'hiden'; did you mean 'hidden'"):
        calibrate(model, ["hiden"], [])


def test_no_data_is_an_error(parse: Parse) -> None:
    with pytest.raises(UsageError, match="calibration data is empty"):
        calibrate(parse(MODEL), ["m"], [])


def test_progress_hears_every_feed(parse: Parse) -> None:
    class Counting:
        stages: list[str] = []
        steps = 0

        def stage(self, name: str, total: int | None = None) -> None:
            self.stages.append(name)

        def advance(self) -> None:
            self.steps += 1

    progress = Counting()
    calibrate(parse(MODEL), ["m"], _feeds(5), progress=progress)
    assert (progress.stages, progress.steps) == ([], 5)


def test_feeds_are_read_one_at_a_time(parse: Parse) -> None:
    alive = 0

    class Tracked(dict[str, Any]):
        def __init__(self, feed: Feed) -> None:
            nonlocal alive
            alive += 1
            super().__init__(feed)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def feeds() -> Iterator[Feed]:
        for feed in _feeds(8):
            assert alive <= 1
            yield Tracked(feed)

    calibrate(parse(MODEL), ["m"], feeds(), method="percentile")
