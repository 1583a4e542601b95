from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.evaluate import can_evaluate, evaluate
from onnxfold.passes.kernels import KERNELS
from onnxfold.runtime.session import Session, version

Array = npt.NDArray[Any]

SIZE = 20_000
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, 1e-40, -1e-40, 3e38, -3e38, np.inf, -np.inf]


def numbers(dtype: str, seed: int = 0) -> Array:
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.integers(0, 2, SIZE).astype(bool)
    if dtype.startswith(("int", "uint")):
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return generator.integers(low, high, SIZE, dtype=dtype, endpoint=True)
    exponents = generator.integers(-30, 30, SIZE)
    values = (generator.standard_normal(SIZE) * 2.0**exponents).astype(dtype)
    special = generator.choice(np.array(SPECIAL, dtype=np.float64), SIZE // 10)
    with np.errstate(over="ignore"):
        values[: SIZE // 10] = special.astype(dtype)
    return values


def one_node(
    op_type: str, inputs: list[Array | None], attributes: dict[str, Any], outputs: int = 1
) -> tuple[ir.Model, dict[str, Array]]:
    values = [
        None
        if array is None
        else ir.Value(
            name=f"i{index}",
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
        )
        for index, array in enumerate(inputs)
    ]
    node = ir.node(op_type, values, attributes, num_outputs=outputs)
    graph = ir.Graph(
        [value for value in values if value is not None],
        node.outputs,
        nodes=[node],
        opset_imports={"": 21},
        name="g",
    )
    feed = {f"i{index}": array for index, array in enumerate(inputs) if array is not None}
    return ir.Model(graph, ir_version=10), feed


def assert_as_in_the_runtime(
    op_type: str,
    inputs: list[Array | None],
    attributes: dict[str, Any] | None = None,
    outputs: int = 1,
) -> None:
    model, feed = one_node(op_type, inputs, attributes or {}, outputs)
    node = next(iter(model.graph))
    got = evaluate(node, 21, inputs, 2**30)
    assert got is not None
    for output, array in zip(node.outputs, got, strict=True):
        output.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        output.shape = ir.Shape(array.shape)
    wanted = list(Session(model).run(feed).values())
    for left, right in zip(got, wanted, strict=True):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op_type", ["Abs", "Ceil", "Floor", "Neg", "Sqrt"])
def test_float_functions(op_type: str, dtype: str) -> None:
    values = numbers(dtype)
    assert_as_in_the_runtime(op_type, [np.abs(values) if op_type == "Sqrt" else values])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_arithmetic(op_type: str, dtype: str) -> None:
    left, right = numbers(dtype), numbers(dtype, 1)
    if dtype.startswith("float"):
        # A NaN, or a choice between -0 and +0, is not folded.
        left, right = (np.where(np.isfinite(x) & (x != 0), x, 1) for x in (left, right))
    elif op_type == "Div":
        right = np.where((right == 0) | (right == -1), 7, right)
    assert_as_in_the_runtime(op_type, [left.astype(dtype), right.astype(dtype)])


def test_sums_of_two() -> None:
    left = np.where(np.isfinite(numbers("float32")), numbers("float32"), 1)
    assert_as_in_the_runtime("Sum", [left, left[::-1].copy()])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("op_type", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons(op_type: str, dtype: str) -> None:
    assert_as_in_the_runtime(op_type, [numbers(dtype), np.roll(numbers(dtype), 3)])


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(op_type: str) -> None:
    assert_as_in_the_runtime(op_type, [numbers("bool"), numbers("bool", 1)])
    assert_as_in_the_runtime("Not", [numbers("bool")])


@pytest.mark.parametrize(
    "target", ["float32", "float64", "int8", "uint8", "int32", "int64", "bool"]
)
@pytest.mark.parametrize(
    "source", ["float32", "float64", "int8", "uint8", "int32", "int64", "bool"]
)
def test_casts(source: str, target: str) -> None:
    values = numbers(source)
    if source.startswith("float") and "int" in target:
        low, high = (0, 200) if target == "uint8" else (-120, 120)
        values = np.trunc(np.clip(np.where(np.isfinite(values), values, 3), low, high))
        values = values.astype(source)
    to = ir.DataType.from_numpy(np.dtype(target))
    assert_as_in_the_runtime("Cast", [values], {"to": to.value})


def test_casts_that_have_no_one_result_are_not_computed() -> None:
    for values, to in [
        (np.array([300.0], np.float32), ir.DataType.UINT8),
        (np.array([np.nan], np.float32), ir.DataType.INT32),
        (np.array([0.1], np.float32), ir.DataType.FLOAT16),
        (np.array([np.nan], np.float64), ir.DataType.FLOAT),
    ]:
        model, _ = one_node("Cast", [values], {"to": to.value})
        assert evaluate(next(iter(model.graph)), 21, [values], 2**20) is None


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
MOVES: list[tuple[str, list[Array | None], dict[str, Any]]] = [
    ("Reshape", [CUBE, ints(0, -1)], {}),
    ("Reshape", [CUBE[:0], ints(0, 3, 4)], {"allowzero": 1}),
    ("Flatten", [CUBE], {"axis": -1}),
    ("Flatten", [CUBE], {"axis": 0}),
    ("Transpose", [CUBE], {}),
    ("Transpose", [CUBE], {"perm": [1, 2, 0]}),
    ("Squeeze", [CUBE[:1], ints(-3)], {}),
    ("Squeeze", [CUBE[:1]], {}),
    ("Unsqueeze", [CUBE, ints(0, -1)], {}),
    ("Slice", [CUBE, ints(-1, 5), ints(-100, -3), ints(2, 1), ints(-1, -1)], {}),
    ("Slice", [CUBE, ints(1), ints(2**62), ints(-1), ints(2)], {}),
    ("Slice", [CUBE, ints(-100), ints(1), ints(0)], {}),
    ("Slice", [CUBE, ints(3), ints(0), ints(2), ints(-2)], {}),
    ("Slice", [CUBE, ints(100), ints(-100), ints(2), ints(-1)], {}),
    ("Gather", [CUBE, ints(-1, 0)], {"axis": -2}),
    ("Gather", [CUBE, np.array(1, dtype=np.int64)], {}),
    ("GatherND", [CUBE, np.array([[0, -1], [1, 0]], dtype=np.int64)], {}),
    ("GatherElements", [CUBE, np.zeros((2, 1, 4), np.int64) - 1], {"axis": 1}),
    ("ScatterND", [CUBE, np.array([[1]], dtype=np.int64), CUBE[:1]], {}),
    ("ScatterElements", [CUBE, np.zeros((1, 1, 4), np.int64), CUBE[1:, 2:]], {"axis": 1}),
    ("Concat", [CUBE, CUBE[:, :1]], {"axis": 1}),
    ("Expand", [CUBE[:, :1], ints(3, 1)], {}),
    ("Expand", [np.array(2, np.float32), ints(2, 2)], {}),
    ("Tile", [CUBE, ints(1, 2, 3)], {}),
    ("Pad", [CUBE, ints(0, 1, 0, 2, 0, 3), np.array(7, dtype=np.float32)], {}),
    ("Pad", [CUBE, ints(0, 1, 0, 2, 0, 3)], {}),
    ("ConstantOfShape", [ints(2, 0, 3)], {}),
    ("ConstantOfShape", [ints(2)], {"value": ir.tensor(np.array([5], np.int32))}),
    ("Range", [np.array(5, np.int64), np.array(-4, np.int64), np.array(-2, np.int64)], {}),
    ("Range", [np.array(5, np.int32), np.array(5, np.int32), np.array(1, np.int32)], {}),
    ("Where", [CUBE > 7, CUBE, np.zeros((1, 1), np.float32)], {}),
    ("Trilu", [CUBE, np.array(-1, np.int64)], {"upper": 0}),
    ("NonZero", [CUBE > 3], {}),
    ("NonZero", [np.array(True)], {}),
    ("Shape", [CUBE], {"start": 1, "end": -1}),
    ("Shape", [CUBE], {"start": -100, "end": 100}),
    ("Size", [CUBE], {}),
    ("DepthToSpace", [np.arange(32, dtype=np.float32).reshape(1, 8, 2, 2)], {"blocksize": 2}),
    ("SpaceToDepth", [np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)], {"blocksize": 2}),
    ("EyeLike", [CUBE[0]], {"k": 1}),
    ("ReduceMax", [CUBE, ints(1)], {"keepdims": 0}),
    ("ReduceMin", [CUBE], {}),
    ("ReduceSum", [CUBE.astype(np.int64), ints(0, -1)], {}),
    ("ReduceProd", [CUBE.astype(np.int64) % 5, ints(2)], {}),
    ("Mod", [ints(7, -7, 7, -7), ints(3, 3, -3, -3)], {}),
    (
        "DequantizeLinear",
        [np.array([[3, -4]], np.int8), np.array([0.1, 3], np.float32), np.array([1, -2], np.int8)],
        {"axis": 1},
    ),
]


@pytest.mark.parametrize("case", MOVES, ids=lambda case: case[0])
def test_movement_and_shape_arithmetic(
    case: tuple[str, list[Array | None], dict[str, Any]],
) -> None:
    op_type, inputs, attributes = case
    assert_as_in_the_runtime(op_type, inputs, attributes)


OLD_RUNTIME = pytest.mark.skipif(
    version().startswith("1.23."), reason="onnxruntime 1.23 refuses a Split into unequal parts"
)


@pytest.mark.parametrize(
    ("sizes", "parts"), [(ints(1, 3), 2), (None, 2), pytest.param(None, 3, marks=OLD_RUNTIME)]
)
def test_split(sizes: Array | None, parts: int) -> None:
    attributes = {"axis": 2} if sizes is not None else {"axis": 2, "num_outputs": parts}
    inputs: list[Array | None] = [CUBE] if sizes is None else [CUBE, sizes]
    assert_as_in_the_runtime("Split", inputs, attributes, outputs=parts)


def test_every_kernel_is_compared_with_the_runtime() -> None:
    compared = {case[0] for case in MOVES} | {"Split", "Cast", "And", "Or", "Xor", "Not"}
    compared |= {"Abs", "Ceil", "Floor", "Neg", "Sqrt", "Add", "Sub", "Mul", "Div", "Max", "Min"}
    compared |= {"Sum", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
    assert set(KERNELS) <= compared


def test_float_arithmetic_in_16_bits_is_not_computed() -> None:
    halves = np.array([1, 2], np.float16)
    model, _ = one_node("Add", [halves, halves], {})
    node = next(iter(model.graph))
    assert can_evaluate(node)
    assert evaluate(node, 21, [halves, halves], 2**20) is None
