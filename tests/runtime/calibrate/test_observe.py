"""observe: feeds run side by side, and nothing about the result or an error shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.runtime.calibrate.extremes import Extremes
from onnxfold.runtime.calibrate.histogram import Histogram
from onnxfold.runtime.calibrate.observe import AHEAD, observe
from onnxfold.runtime.session import REFERENCE, Session

Parse = Callable[..., ir.Model]
Feed = dict[str, npt.NDArray[np.float32]]

MODEL = "g (float[N,C] x) => (float[N,C] y) { h = Sin(x) y = Mul(h, x) }"


def _feeds(count: int = 24) -> Iterator[Feed]:
    """Feeds of very different sizes, so that they do not finish in the order they started."""
    rng = np.random.default_rng(0)
    for index in range(count):
        shape = (200, 500) if index % 5 == 0 else (index % 3 + 1, 4)
        yield {"x": rng.normal(scale=1 + index, size=shape).astype(np.float32)}


def test_counts_and_extremes_are_those_of_one_feed_after_the_other(parse: Parse) -> None:
    names = ["x", "h", "y"]
    counted = observe(parse(MODEL), names, Histogram, _feeds())
    extremes = observe(parse(MODEL), names, Extremes, _feeds())
    expected = {name: Histogram() for name in names}
    model = parse(MODEL)
    model.graph.outputs.insert(0, model.graph[0].outputs[0])
    session = Session(model, REFERENCE)
    for feed in _feeds():
        for name, values in {**feed, **session.run(feed)}.items():
            expected[name].update(values)
    for name, histogram in expected.items():
        assert counted[name].exponent == histogram.exponent
        assert np.array_equal(counted[name].counts, histogram.counts)
        assert counted[name].extremes == extremes[name] == histogram.extremes


def test_a_reader_may_use_its_array_again(parse: Parse) -> None:
    def feeds() -> Iterator[Feed]:
        x = np.empty((100, 100), np.float32)
        for value in range(1, 10):
            x[...] = value
            yield {"x": x}
            x[...] = 1000

    assert observe(parse(MODEL), ["x"], Extremes, feeds())["x"].range() == (1.0, 9.0)


def test_the_first_bad_feed_is_named_though_a_later_one_fails_sooner(parse: Parse) -> None:
    slow = np.zeros((1000, 1000), np.float32)
    slow[-1, -1] = np.inf
    arrays = [np.zeros((1, 1), np.float32), slow, np.full((1, 1), np.nan, np.float32)]
    with pytest.raises(InvalidModelError, match=r"'x' has infinite values on .* sample 1;"):
        observe(parse(MODEL), ["x"], Extremes, ({"x": array} for array in arrays))


def test_a_feed_that_does_not_fit_is_an_error(parse: Parse) -> None:
    with pytest.raises(UsageError, match="wants float32"):
        observe(parse(MODEL), ["h"], Extremes, [{"x": np.zeros((1, 1), np.int32)}])


def test_an_error_of_the_reader_arrives_as_it_is(parse: Parse) -> None:
    def feeds() -> Iterator[Feed]:
        yield from _feeds(3)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        observe(parse(MODEL), ["h"], Extremes, feeds())


def test_reading_stays_in_the_calling_thread_and_a_few_feeds_ahead(parse: Parse) -> None:
    class Counting:
        steps = 0

        def stage(self, name: str, total: int | None = None) -> None:
            raise AssertionError(name)

        def advance(self) -> None:
            assert threading.current_thread() is caller
            self.steps += 1

    def feeds() -> Iterator[Feed]:
        for index, feed in enumerate(_feeds()):
            assert threading.current_thread() is caller
            assert index - progress.steps < AHEAD
            yield feed

    caller = threading.current_thread()
    progress = Counting()
    observe(parse(MODEL), ["h"], Histogram, feeds(), progress)
    assert progress.steps == 24


def test_histograms_counted_at_the_same_time_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(scale=scale, size=300_000).astype(np.float32) for scale in (1, 5, 9)]
    found: list[Any] = [Histogram() for _ in values]
    threads = [
        threading.Thread(target=histogram.update, args=(array,))
        for histogram, array in zip(found, values, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for histogram, array in zip(found, values, strict=True):
        alone = Histogram()
        alone.update(array)
        assert np.array_equal(histogram.counts, alone.counts)
