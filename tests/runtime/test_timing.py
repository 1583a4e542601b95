from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.session import REFERENCE, Session
from onnxfold.runtime.timing import (
    is_machine_busy,
    measure_interleaved,
    measure_runs,
    median_interval,
)


class Clock:
    """Time that passes only when something runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.load = 1.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, seconds: float) -> Callable[[], object]:
        def run() -> None:
            self.log.append(name)
            self.now += seconds * self.load

        return run


def test_ratios_are_paired_so_that_load_cancels() -> None:
    clock = Clock()
    fast, slow = clock.runner("fast", 0.010), clock.runner("slow", 0.020)

    def first() -> None:
        clock.load = 1.0 + 5.0 * (len(clock.log) // 16 % 2)  # the machine is busy now and then
        slow()

    runs = [{"slow": first, "fast": fast}]
    timings = measure_runs(runs, {"slow": 2, "fast": 2}, 24, 0, 1e9, clock)

    assert timings["slow"].relative == 1.0
    assert timings["fast"].relative == pytest.approx(0.5)
    assert timings["slow"].upper_quartile_ms > 2 * timings["slow"].lower_quartile_ms


def test_the_fastest_turns_of_each_feed_see_through_load_that_stops_single_turns() -> None:
    clock = Clock()

    def runner(name: str, seconds: float) -> Callable[[], object]:
        run = clock.runner(name, seconds)

        def stopped_now_and_then() -> None:
            # Most turns of either are stopped, never the last: medians are of no use.
            clock.load = 20.0 if len(clock.log) * len(name) % 11 else 1.0
            run()

        return stopped_now_and_then

    runs = [
        {"slow": runner("slow", 0.02 * size), "faster": runner("faster", 0.01 * size)}
        for size in (1, 3)
    ]
    timings = measure_runs(runs, {"slow": 1, "faster": 1}, 60, 0, 1e9, clock)

    assert timings["faster"].relative_best == pytest.approx(0.5)
    assert timings["slow"].relative_best == 1.0


@pytest.mark.parametrize(("load", "busy"), [(2.9, False), (3.1, True)])
def test_a_machine_with_more_to_do_than_this_process_is_busy(
    load: float, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert is_machine_busy() == busy
    monkeypatch.delattr(os, "getloadavg")
    assert not is_machine_busy()


def test_everyone_takes_every_place() -> None:
    clock = Clock()
    names = ["a", "b", "c"]
    runs = [{name: clock.runner(name, 0.01) for name in names}]
    measure_runs(runs, dict.fromkeys(names, 1), 6, 0, 1e9, clock)
    order = ["".join(clock.log[i : i + 6 : 2]) for i in range(0, len(clock.log), 6)]
    assert order == ["abc", "cba", "bca", "acb", "cab", "bac"]


def test_feeds_are_taken_in_turns() -> None:
    clock = Clock()
    runs = [{"x": clock.runner(f"feed {i}", 0.01)} for i in range(3)]
    measure_runs(runs, {"x": 1}, 6, 0, 1e9, clock)
    assert clock.log == [f"feed {i}" for i in (0, 0, 1, 1, 2, 2) * 2]


@pytest.mark.parametrize(
    ("rounds", "least", "most", "expected"),
    [(5, 0.0, 1e9, 5), (5, 0.4, 1e9, 20), (50, 0.0, 0.095, 5), (50, 0.0, 0.0, 3)],
)
def test_length_is_bounded(rounds: int, least: float, most: float, expected: int) -> None:
    clock = Clock()
    timings = measure_runs([{"x": clock.runner("x", 0.01)}], {"x": 1}, rounds, least, most, clock)
    assert timings["x"].rounds == expected
    assert timings["x"].median_ms == pytest.approx(10)
    assert timings["x"].mad_ms == pytest.approx(0)


def test_runs_before_the_sample_are_not_counted() -> None:
    clock = Clock()
    lengths = iter([0.5, 0.001, 0.001])

    def run() -> None:
        clock.now += next(lengths)

    timings = measure_runs([{"x": run}], {"x": 2}, 1, 0, 1e9, clock)
    assert timings["x"].median_ms == pytest.approx(1)


def test_interval_of_the_median_covers_95_percent() -> None:
    assert median_interval([1, 2, 3]) == (1, 3)
    assert median_interval(list(range(1, 7))) == (1, 6)
    # n = 15: 3 or fewer heads have probability 1.8 %, 4 or fewer 5.9 %
    assert median_interval(list(range(1, 16))) == (4, 12)
    for count in (10, 25, 100):
        low, high = (int(x) for x in median_interval(list(range(count))))
        inside = sum(math.comb(count, k) for k in range(low + 1, high + 1)) / 2**count
        assert inside >= 0.95


def matmuls(count: int) -> Session:
    body = " ".join(f"x{i + 1} = MatMul(x{i}, w)" for i in range(count))
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[128,128] x0) => (float[128,128] x{count}) {{ {body} }}"""
    )
    weights: Array = np.eye(128, dtype=np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return Session(proto, REFERENCE)


def test_more_work_takes_longer() -> None:
    feed = {"x0": np.ones((128, 128), np.float32)}
    timings = measure_interleaved({"one": matmuls(1), "two": matmuls(32)}, [feed], rounds=7)

    assert timings["one"].relative == 1.0
    assert timings["two"].relative > 2  # 32, on a machine with nothing else to do
    assert timings["two"].relative_low <= timings["two"].relative <= timings["two"].relative_high
    assert gc.isenabled()
    assert json.loads(json.dumps(timings["two"].to_json()))["rounds"] == 7


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one model and one feed"):
        measure_interleaved({}, [])
