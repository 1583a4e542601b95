from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, InvalidModelError, UsageError
from onnxfold.runtime.worker import Limits, run_isolated, run_model_isolated

SHORT = Limits(seconds=300, cpu_seconds=100, memory_bytes=2 << 30)


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')


def test_what_the_function_returns_comes_back() -> None:
    result: Array = run_isolated(np.linspace, 0.0, 1.0, 5, limits=SHORT)
    np.testing.assert_array_equal(result, [0, 0.25, 0.5, 0.75, 1])
    assert run_isolated(os.getpid, limits=SHORT) != os.getpid()


def test_what_the_function_raises_is_told() -> None:
    with pytest.raises(ExecutionError, match=r"^read: FileNotFoundError: .*nothing\.here"):
        run_isolated(Path.read_bytes, Path("nothing.here"), limits=SHORT, what="read")


def test_endless_work_is_stopped() -> None:
    started = time.monotonic()
    with pytest.raises(ExecutionError, match=r"^sleep: ran for more than 0\.5 seconds$"):
        run_isolated(time.sleep, 60, limits=Limits(seconds=0.5))
    assert time.monotonic() - started < 55


def test_processor_time_is_limited() -> None:
    with pytest.raises(ExecutionError, match="used more processor time than allowed"):
        run_isolated(sum, range(10**12), limits=Limits(seconds=300, cpu_seconds=1))


def test_memory_is_limited() -> None:
    with pytest.raises(ExecutionError, match=r"ran out of memory"):
        run_isolated(np.ones, 4 << 30, limits=SHORT)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_named(number: signal.Signals) -> None:
    with pytest.raises(ExecutionError, match=f"^bad: crashed with {number.name}"):
        run_isolated(signal.raise_signal, int(number), limits=SHORT, what="bad")


def test_leaving_early_is_a_crash() -> None:
    with pytest.raises(ExecutionError, match="the worker ended with status 3"):
        run_isolated(os._exit, 3, limits=SHORT)  # pyright: ignore[reportPrivateUsage]


def test_a_model_runs_in_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parse("g (float[N,2] x) => (float[N,2] y) { y = Add(x, x) }"), path)
    feeds: list[dict[str, Any]] = [{"x": np.full((1, 2), i, np.float32)} for i in range(3)]
    outputs = run_model_isolated(path, feeds, SHORT)
    assert [output["y"].tolist() for output in outputs] == [[[0, 0]], [[2, 2]], [[4, 4]]]


def test_errors_of_a_model_keep_their_class(tmp_path: Path) -> None:
    proto = parse("g (float[N,2] x) => (float[N,2] y) { y = Add(x, x) }")
    with pytest.raises(UsageError, match=r"input 'x'.* is not fed"):
        run_model_isolated(proto.SerializeToString(), [{}], SHORT)
    with pytest.raises(InvalidModelError, match="no such file"):
        run_model_isolated(tmp_path / "m.onnx", [], SHORT)


def test_a_bomb_is_contained() -> None:
    proto = parse("g () => (float[A,B] y) { y = ConstantOfShape(shape) }")
    shape: Array = np.array([1 << 17, 1 << 17])  # 64 GiB
    proto.graph.initializer.append(numpy_helper.from_array(shape, "shape"))
    with pytest.raises(ExecutionError, match="model"):
        run_model_isolated(proto.SerializeToString(), [{}], SHORT)
