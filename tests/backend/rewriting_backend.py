"""The ONNX backend suite as a corpus: every case on ONNX Runtime, before and after passes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.backend.test.case.node
import onnx.backend.test.loader
import onnx_ir as ir
from onnx import numpy_helper

from onnxfold.passes.errors import OnnxfoldError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import REFERENCE, Session, max_ir_version, max_opset_version

_FOLDERS = ("simple", "pytorch-converted", "pytorch-operator", "light")


@dataclass(frozen=True)
class Case:
    """One model of the suite with its inputs.

    Attributes:
        name: The suite's name for it.
        model: The model, its IR version and opset clamped to what ONNX Runtime loads.
        inputs: One list of inputs per data set, in the order of the graph's inputs.
        rtol: The suite's relative tolerance.
        atol: The suite's absolute tolerance.
    """

    name: str
    model: onnx.ModelProto
    inputs: tuple[tuple[Any, ...], ...]
    rtol: float
    atol: float


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every case that ships with onnx, sorted by name: node tests and exported models."""
    cases = [*_node_cases(), *_folder_cases()]
    return tuple(sorted(cases, key=lambda case: case.name))


def _node_cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        # Collecting runs code of onnx that newer versions of numpy deprecate.
        warnings.simplefilter("ignore", DeprecationWarning)
        cases = onnx.backend.test.case.node.collect_testcases(None)
    for case in cases:
        if case.model is None or case.data_sets is None:
            continue
        inputs = tuple(tuple(map(_plain, given)) for given, _ in case.data_sets)
        yield Case(case.name, _clamped(case.model), inputs, case.rtol, case.atol)


def _folder_cases() -> Iterator[Case]:
    root = Path(onnx.backend.test.loader.DATA_DIR)
    for kind in _FOLDERS:
        for path in sorted((root / kind).rglob("*.onnx")):
            model = _clamped(onnx.load(path))
            sets = sorted(path.parent.glob("test_data_set_*"))
            inputs = tuple(_load_inputs(model, folder) for folder in sets)
            name = f"{path.parent.name}_{path.stem}" if kind == "light" else path.parent.name
            yield Case(name, model, inputs or (_zeros(model),), 1e-3, 1e-7)


def _load_inputs(model: onnx.ModelProto, folder: Path) -> tuple[Any, ...]:
    loaded: list[Any] = []
    for index, value in enumerate(model.graph.input):
        path = folder / f"input_{index}.pb"
        if not path.exists():
            break
        is_sequence = value.type.HasField("sequence_type")
        proto = onnx.SequenceProto() if is_sequence else onnx.TensorProto()
        proto.ParseFromString(path.read_bytes())
        loaded.append(_plain(proto))
    return tuple(loaded)


def _zeros(model: onnx.ModelProto) -> tuple[Any, ...]:
    constants = {tensor.name for tensor in model.graph.initializer}
    generator = np.random.default_rng(0)
    arrays: list[Any] = []
    for value in model.graph.input:
        if value.name not in constants:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            arrays.append(generator.standard_normal(shape).astype(np.float32))
    return tuple(arrays)


def _plain(value: object) -> object:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return cast(Any, numpy_helper.to_list(value))
    if isinstance(value, onnx.OptionalProto):
        return cast(Any, numpy_helper.to_optional(value))
    return np.asarray(value) if isinstance(value, np.generic | int | float | bool) else value


def _clamped(model: onnx.ModelProto) -> onnx.ModelProto:
    clamped = onnx.ModelProto()
    clamped.CopyFrom(model)
    clamped.ir_version = min(clamped.ir_version, max_ir_version())
    for imported in clamped.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = min(imported.version, max_opset_version())
    return clamped


def run(model: onnx.ModelProto, case: Case) -> list[list[Any]]:
    """The outputs of ``model`` on every data set of ``case``, optimizations off.

    Raises:
        OnnxfoldError: ONNX Runtime refuses the model or its inputs.
    """
    return _run(Session(model, REFERENCE), case)


def _run(session: Session, case: Case) -> list[list[Any]]:
    names = [spec.name for spec in session.inputs]
    feeds = [dict(zip(names, given, strict=False)) for given in case.inputs]
    return [list(session.run(feed).values()) for feed in feeds]


def rewrite(model: onnx.ModelProto, pipeline: str) -> onnx.ModelProto:
    """``model`` after the passes of ``pipeline``, checked."""
    rewritten = Pipeline(parse_passes(pipeline)).run(ir.from_proto(model)).model
    return ir.to_proto(rewritten)


def reference_outputs(case: Case) -> list[list[Any]] | None:
    """What the untouched case computes; None where ONNX Runtime cannot run it repeatably."""
    try:
        session = Session(case.model, REFERENCE)
        first, second = _run(session, case), _run(session, case)
    except OnnxfoldError:
        return None
    return first if first and difference(first, second, 0, 0) == "" else None


def difference(wanted: Any, got: Any, rtol: float, atol: float) -> str:
    """Why ``got`` is not ``wanted``; with zero tolerances every bit counts, save those of NaN."""
    if isinstance(wanted, list | tuple | dict) or wanted is None:
        return _difference_of_many(wanted, got, rtol, atol)
    left, right = np.asarray(wanted), np.asarray(got)
    if left.dtype != right.dtype or left.shape != right.shape:
        return f"{right.dtype}{right.shape} in place of {left.dtype}{left.shape}"
    if left.dtype.kind in "OU":
        return "" if left.tolist() == right.tolist() else "other strings"
    if left.tobytes() == right.tobytes():
        return ""
    if left.dtype.kind not in "fcV":
        return "other integers"
    return _difference_of_floats(left.astype(np.float64), right.astype(np.float64), rtol, atol)


def _difference_of_floats(left: Any, right: Any, rtol: float, atol: float) -> str:
    signs = np.array_equal(np.signbit(left) | np.isnan(left), np.signbit(right) | np.isnan(right))
    if not rtol and not atol and not signs:
        return "another sign of zero"
    if np.allclose(right, left, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    return f"differs by {np.nanmax(np.abs(left - right))}"


def _difference_of_many(wanted: Any, got: Any, rtol: float, atol: float) -> str:
    if wanted is None or isinstance(wanted, dict):
        return "" if wanted == got else f"{got} in place of {wanted}"
    if not isinstance(got, list | tuple) or len(wanted) != len(cast(Sequence[Any], got)):
        return "another number of values"
    pairs = zip(wanted, cast(Sequence[Any], got), strict=True)
    problems = (difference(left, right, rtol, atol) for left, right in pairs)
    return next(filter(None, problems), "")
