"""gather-blocked: rows of tables with one scale a block are dequantized when they are looked up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.gather_blocked import GatherBlocked
from onnxfold.runtime.session import DEPLOYMENT, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
_CODES: dict[ir.DataType, tuple[Any, int, int]] = {
    ir.DataType.INT8: (np.int8, -128, 128),
    ir.DataType.UINT8: (np.uint8, 0, 256),
    ir.DataType.INT4: (ml_dtypes.int4, -8, 8),
    ir.DataType.UINT4: (ml_dtypes.uint4, 0, 16),
}


def _model(dtype: ir.DataType, axis: int, parse: Parse, *, zero_points: bool = True) -> ir.Model:
    """A table of [6, 32] (or [32, 6]) with blocks of 16 along the long axis."""
    rows = axis == 0
    shape = "2,2,32" if rows else "32,2,2"
    model = parse(
        f"""agraph (int64[2,2] i) => (float[{shape}] y) <float w = {{0.0}}, float s = {{0.0}},
        float z = {{0.0}}> {{
          t = DequantizeLinear <axis = {int(rows)}, block_size = 16> (w, s{", z" * zero_points})
          y = Gather <axis = {axis}> (t, i)
        }}"""
    )
    numbers = np.random.default_rng(0)
    kind, low, high = _CODES[dtype]
    shapes = {"w": (6, 32), "s": (6, 2), "z": (6, 2)}
    arrays: dict[str, Array] = {
        name: np.asarray(numbers.integers(low, high, shape)) for name, shape in shapes.items()
    }
    arrays["s"] = (0.01 + (arrays["s"] - low) / 100).astype(np.float32)
    del model.graph.initializers["w"], model.graph.initializers["s"], model.graph.initializers["z"]
    for name, array in arrays.items():
        if name == "z" and not zero_points:
            continue
        typed: Array = array if name == "s" else array.astype(kind)
        turned: Array = np.einsum("ab->ab" if rows else "ab->ba", typed.astype(np.float32))
        turned = turned.astype(typed.dtype)
        value = next(
            each
            for node in model.graph
            for each in node.inputs
            if each is not None and each.name == name
        )
        value.const_value = ir.tensor(turned, name=name)
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape([*turned.shape])
        if name == "s":
            value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", _CODES)
def test_same_numbers(
    dtype: ir.DataType,
    axis: int,
    zero_points: bool,
    parse: Parse,
    apply_pass: Callable[..., PassResult],
) -> None:
    before = _model(dtype, axis, parse, zero_points=zero_points)
    model = _model(dtype, axis, parse, zero_points=zero_points)
    packed = dtype.bitwidth == 4
    result = apply_pass(GatherBlocked(contrib=packed), model)
    assert result.rules["gather-blocked"] == 1
    census = Counter(node.op_type for node in model.graph)
    expected = {"Gather": 2 + zero_points, "DequantizeLinear": 1}
    assert census == ({"GatherBlockQuantized": 1} if packed else expected)
    feed = {"i": np.array([[2, 0], [5, 1]])}
    wanted = Session(before).run(feed)["y"]
    np.testing.assert_array_equal(Session(model).run(feed)["y"], wanted)
    np.testing.assert_array_equal(Session(model, DEPLOYMENT).run(feed)["y"], wanted)


def test_4_bit_tables_stay_without_the_operator(parse: Parse, apply_pass: Any) -> None:
    assert not apply_pass(GatherBlocked(), _model(ir.DataType.INT4, 0, parse)).rules
