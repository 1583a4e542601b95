"""The clock of ``compile``, by real time: all other tests count work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.runtime.compiler.clock import Clock, make_clock, make_one_thread_clock
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.specs import input_specs

pytestmark = pytest.mark.usefixtures("time_is_real")


def chain(parse: Callable[..., ir.Model], count: int) -> ir.Model:
    nodes = "  ".join(f"t{i + 1} = Tanh (t{i})" for i in range(count))
    return parse(f"g (float[64,64] t0) => (float[64,64] t{count}) {{ {nodes} }}")


@pytest.mark.parametrize("make", [make_clock, make_one_thread_clock])
def test_forty_times_the_work_takes_longer(
    make: Callable[[FeedSource, Silent], Clock], parse: Callable[..., ir.Model]
) -> None:
    one, many = chain(parse, 1), chain(parse, 40)
    bad = parse("g (float[64,64] t0) => (float[7] y) <int64[1] s = {7}> { y = Reshape (t0, s) }")
    data = [{"t0": np.ones((64, 64), np.float32)}]
    clock = make(open_feeds(data, input_specs(one)), Silent())
    times = clock({"one": one, "many": many, "bad": bad})
    assert set(times) == {"one", "many"}, "what does not run is left out"
    assert times["one"].relative == 1
    assert times["many"].relative > 2
    assert 0 < times["one"].median_ms < times["many"].median_ms
