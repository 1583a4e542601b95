"""What tests of losses share: building one and running it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxfold.passes.loss.build import (
    DEFAULT_OPSET,
    LossModel,
    LossTensor,
    build_loss,
    parse_losses,
)

Array = npt.NDArray[Any]


def _tensor(number: int, array: Array, dynamic: bool) -> LossTensor:
    dims = [f"D{axis}" if dynamic else size for axis, size in enumerate(array.shape)]
    return LossTensor(f"t{number}", ir.DataType.from_numpy(array.dtype), tuple(dims))


def _build(
    text: str,
    inputs: Sequence[Array],
    *,
    tensors: int = 1,
    opset: int = DEFAULT_OPSET,
    dynamic: bool = False,
) -> LossModel:
    (spec,) = parse_losses(text)
    given = [_tensor(number, each, dynamic) for number, each in enumerate(inputs[:tensors])]
    return build_loss(spec, given, opset)


def _run(
    text: str,
    *inputs: Array,
    tensors: int = 1,
    opset: int = DEFAULT_OPSET,
    dynamic: bool = False,
    optimize: bool = False,
) -> Array:
    # Imported late: the tests of the passes must not need a runtime to be collected.
    from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

    built = _build(text, inputs, tensors=tensors, opset=opset, dynamic=dynamic)
    feed = dict(zip((*built.tensors, *built.data), inputs, strict=True))
    session = Session(ir.to_proto(built.model), DEPLOYMENT if optimize else REFERENCE)
    return session.run(feed)["loss"]


def _run_reference(text: str, *inputs: Array, tensors: int = 1, dynamic: bool = False) -> Array:
    wide = [each if each.dtype.kind == "i" else each.astype(np.float64) for each in inputs]
    built = _build(text, wide, tensors=tensors, dynamic=dynamic)
    feed = dict(zip((*built.tensors, *built.data), wide, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy says of inf and nan what the losses guard against
        (result,) = ReferenceEvaluator(ir.to_proto(built.model)).run(None, feed)
    return np.asarray(result)


@pytest.fixture
def build() -> Callable[..., LossModel]:
    """``build(text, inputs, tensors=1, opset=18, dynamic=False)``: the loss for these arrays."""
    return _build


@pytest.fixture
def run() -> Callable[..., Array]:
    """``run(text, *inputs, tensors=1, ...)``: its value in ONNX Runtime."""
    return _run


@pytest.fixture
def run_reference() -> Callable[..., Array]:
    """``run_reference(text, *inputs, tensors=1)``: its value in float64 in onnx's evaluator."""
    return _run_reference


@pytest.fixture(params=["plain", "optimized", "dynamic", "opset 13", "newest opset"])
def run_variant(request: pytest.FixtureRequest) -> Callable[..., Array]:
    """``run`` in each of the ways that must make no difference."""
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "optimized": {"optimize": True},
        "dynamic": {"dynamic": True},
        "opset 13": {"opset": 13},
        "newest opset": {"opset": 22},
    }

    def run(text: str, *inputs: Array, tensors: int = 1) -> Array:
        return _run(text, *inputs, tensors=tensors, **options[request.param])

    return run
