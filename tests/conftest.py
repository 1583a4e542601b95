"""What all tests share: models as ONNX text, comparison as text, and running both sides."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
import pytest

from fixtures.fetch import DownloadError, fetch
from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.registry import parse_passes

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True, scope="session")
def time_is_counted() -> Generator[None]:
    """No test depends on how fast a machine is; what is about time has a clock of its own."""
    # Imported late: the tests of the passes must not need a runtime to be collected.
    from fixtures.counted_time import counted_time

    with counted_time():
        yield


@pytest.fixture(scope="module")
def time_is_real() -> Generator[None]:
    """``compile`` and ``fold`` time after all, in a module that says so."""
    from fixtures.counted_time import real_time

    with real_time():
        yield


@pytest.fixture(autouse=True, scope="session")
def cores_are_shared() -> Generator[None]:
    """Processes of one run share the cores: ONNX Runtime's threads would spin on each other's."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = max(1, (os.cpu_count() or 1) // workers)
    from onnxfold.runtime import session

    name = "_options"
    options: Callable[[Any], Any] = getattr(session, name)

    def shared(config: Any) -> Any:
        return options(config if config.threads else replace(config, threads=share))

    with mock.patch.object(session, name, shared if workers > 1 else options):
        yield


@pytest.fixture(scope="session")
def growth_of_time() -> Callable[[Callable[[], object], Callable[[], object]], float]:
    """``growth_of_time(few, many)``: how much longer the second takes, at best of several.

    By processor time. For ten times the work, what is linear gives about 10, on any machine and
    whatever else it does, and what is quadratic 100.
    """
    return _growth_of_time


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The folder of small models: /fixtures in the repository."""
    return Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """``real_model("magika")``: the path of a listed real model; skips where it cannot be had."""
    return _real_model


@pytest.fixture
def parse() -> Callable[..., ir.Model]:
    """``parse(text, opset=21)``: an ``ir.Model`` from ONNX text; the header may be left out."""
    return _parse


@pytest.fixture
def text_of() -> Callable[[ir.Model], str]:
    """``text_of(model)``: its text without node names, metadata and intermediate types."""
    return _text_of


@pytest.fixture
def assert_text() -> Callable[[ir.Model, str], None]:
    """``assert_text(model, expected)``: same nodes, names, attributes, constants, in/outputs.

    Ignores node names, metadata, docstrings, intermediate types and the initializers' order. The
    header is compared where ``expected`` has one.
    """
    return _assert_text


@pytest.fixture
def apply_pass() -> Callable[[Pass | str, ir.Model], PassResult]:
    """``apply_pass(pass_or_text, model)``: checks the model before, rewrites in place, checks."""
    return _apply_pass


@pytest.fixture
def random_feed() -> Callable[..., dict[str, Array]]:
    """``random_feed(model, seed=0, sizes={"N": 2})``: a feed of small random numbers."""
    return _random_feed


@pytest.fixture
def evaluate() -> Callable[[ir.Model, Mapping[str, Array]], dict[str, Any]]:
    """``evaluate(model, feed)``: the outputs in ONNX Runtime, optimizations off, one thread."""
    return _evaluate


_LINEAR = 15  # for ten times the work: surely linear, other attempts are not needed


def _growth_of_time(few: Callable[[], object], many: Callable[[], object]) -> float:
    best = [math.inf, math.inf]
    for _ in range(3):
        for place, work in enumerate((few, many)):
            started = time.process_time()
            work()
            best[place] = min(best[place], time.process_time() - started)
        if best[1] < _LINEAR * best[0]:
            break
    return best[1] / best[0]


def _real_model(name: str) -> Path:
    try:
        return fetch(name)
    except DownloadError as error:
        pytest.skip(str(error))


def _parse(text: str, opset: int = 21) -> ir.Model:
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}'
    return ir.from_proto(onnx.parser.parse_model(text))


def _text_of(model: ir.Model) -> str:
    proto = ir.to_proto(model)
    for field in ("doc_string", "metadata_props"):
        proto.ClearField(field)
    roots = [proto.graph, *proto.functions]
    for root in roots:
        _drop_names(root)
    return onnx.printer.to_text(proto)


def _drop_names(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    graph.ClearField("value_info")
    if isinstance(graph, onnx.GraphProto):
        for tensor in graph.initializer:
            _spell_out(tensor)
        ordered = sorted(graph.initializer, key=lambda tensor: tensor.name)
        graph.ClearField("initializer")
        graph.initializer.extend(ordered)
    for node in graph.node:
        node.ClearField("name")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
                _spell_out(attribute.t)
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    _drop_names(body)
        ordered_attributes = sorted(node.attribute, key=lambda each: each.name)
        node.ClearField("attribute")
        node.attribute.extend(ordered_attributes)


def _spell_out(tensor: onnx.TensorProto) -> None:
    """Before 1.23 onnx prints raw bytes of 8-bit integers as dots."""
    if tensor.raw_data and tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
        tensor.int32_data.extend(onnx.numpy_helper.to_array(tensor).reshape(-1).tolist())
        tensor.ClearField("raw_data")


def _assert_text(model: ir.Model, expected: str) -> None:
    wanted = _parse(expected)
    if not expected.lstrip().startswith("<"):
        wanted.ir_version = model.ir_version
        wanted.domain, wanted.model_version = model.domain, model.model_version
        wanted.opset_imports.clear()
        wanted.opset_imports.update(model.opset_imports)
    wanted.graph.name = model.graph.name
    assert _text_of(model) == _text_of(wanted)


def _apply_pass(pass_: Pass | str, model: ir.Model) -> PassResult:
    onnx.checker.check_model(ir.to_proto(model))
    passes = parse_passes(pass_) if isinstance(pass_, str) else (pass_,)
    assert len(passes) == 1, f"one pass, not {pass_}"
    result = passes[0].run(model)
    onnx.checker.check_model(ir.to_proto(result.model))
    return result


def _random_feed(
    model: ir.Model, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers:
            continue
        assert value.dtype is not None
        shape = [
            dim if isinstance(dim, int) else (sizes or {}).get(str(dim.value), 2)
            for dim in value.shape or ()
        ]
        dtype = value.dtype.numpy()
        if value.dtype == ir.DataType.BOOL:
            array = generator.integers(0, 2, shape).astype(dtype)
        elif dtype.kind in "iu":
            array = generator.integers(0 if dtype.kind == "u" else -9, 9, shape).astype(dtype)
        else:
            array = generator.standard_normal(shape).astype(dtype)
        feed[value.name] = array
    return feed


def _evaluate(model: ir.Model, feed: Mapping[str, Array]) -> dict[str, Any]:
    # Imported late: the tests of the passes must not need a runtime to be collected.
    from onnxfold.runtime.session import REFERENCE, Session

    return Session(model, REFERENCE).run(feed)
