from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import SIMPLIFY
from onnxfold.passes.registry import parse_passes

Shape = tuple[int, ...]
T = TypeVar("T")
SEEDS = st.integers(0, 2**32 - 1)
EACH_ALONE = tuple(dict.fromkeys(SIMPLIFY.split(",")))
UNARY = ("Abs", "Ceil", "Exp", "Floor", "Identity", "Neg", "Relu", "Sqrt", "Tanh")
BINARY = ("Add", "Div", "Max", "Min", "Mul", "Sub")
DATA = np.array([0, -0.0, 1, -1, 0.3, -2.7, 11], dtype=np.float32)
NUMBERS = (0.0, -0.0, 1.0, 1.0, 2.5)


class Builder:
    """Grows a random model of three inputs: dynamic, static and overridable."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = [numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "over")]
        self.values: list[tuple[str, Shape]] = [("x", (2, 3, 4)), ("s", (3, 4)), ("over", (4,))]

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def toss(self) -> bool:
        return self.random.random() < 0.5

    def node(self, op_type: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
        return names[0]

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"c{len(self.nodes)}_{len(self.initializers)}"
        tensor = numpy_helper.from_array(array, name)
        if self.toss():
            self.initializers.append(tensor)
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def grow(self) -> None:
        # Mostly on what was made last: rewrites need nodes that follow each other.
        recent = self.values[-1:] if self.random.random() < 0.7 else self.values
        name, shape = self.pick(recent)
        step = self.pick(STEPS)
        grown = step(self, name, shape)
        if grown is not None and np.prod(grown[1]) <= 200:
            self.values.append(grown)

    def model(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        outputs = [each for each in self.values if each[0] not in read]
        inputs = [("x", ["N", 3, 4]), ("s", [3, 4]), ("over", [4])]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n, dims in inputs],
            [
                helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, [None] * len(shape))
                for i, (_, shape) in enumerate(outputs)
            ],
            self.initializers,
        )
        last = [helper.make_node("Identity", [n], [f"out{i}"]) for i, (n, _) in enumerate(outputs)]
        graph.node.extend(last)
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


Grown = tuple[str, Shape] | None


def unary(builder: Builder, name: str, shape: Shape) -> Grown:
    return builder.node(builder.pick(UNARY), [name]), shape


def binary(builder: Builder, name: str, shape: Shape) -> Grown:
    others = [other for other, dims in builder.values if dims == shape]
    operands = [name, builder.pick(others)]
    if builder.toss():
        operands.reverse()
    return builder.node(builder.pick(BINARY), operands), shape


def with_number(builder: Builder, name: str, shape: Shape) -> Grown:
    dims = builder.pick(((), (1,), shape, shape[-1:]))
    number = builder.constant(np.full(dims, builder.pick(NUMBERS), np.float32))
    grown = np.broadcast_shapes(shape, dims)
    return builder.node(builder.pick(BINARY), [name, number]), grown


def transpose(builder: Builder, name: str, shape: Shape) -> Grown:
    if not shape:
        return None
    perm = builder.random.sample(range(len(shape)), len(shape))
    return builder.node("Transpose", [name], perm=perm), tuple(shape[axis] for axis in perm)


def reshape(builder: Builder, name: str, shape: Shape) -> Grown:
    target: list[int] = builder.random.sample(shape, len(shape))
    if builder.toss():
        target = [*target, 1]
    written = list(target)
    if written and builder.toss():
        written[builder.pick(range(len(written)))] = -1
    if written and target[0] == shape[0] and builder.toss():
        written[0] = 0
    return builder.node("Reshape", [name, builder.ints(*written)]), tuple(target)


def copying_reshape(builder: Builder, name: str, shape: Shape) -> Grown:
    if len(shape) < 2:
        return None
    grown = builder.node("Reshape", [name, builder.ints(0, -1)])
    return grown, (shape[0], int(np.prod(shape[1:])))


def flatten(builder: Builder, name: str, shape: Shape) -> Grown:
    axis = builder.pick(range(len(shape) + 1))
    dims = int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    return builder.node("Flatten", [name], axis=axis), dims


def unsqueeze(builder: Builder, name: str, shape: Shape) -> Grown:
    axis = builder.pick(range(len(shape) + 1))
    grown = builder.node("Unsqueeze", [name, builder.ints(axis)])
    return grown, (*shape[:axis], 1, *shape[axis:])


def squeeze(builder: Builder, name: str, shape: Shape) -> Grown:
    if 1 not in shape:
        return None
    axis = shape.index(1)
    given = builder.pick((axis, axis - len(shape)))
    return builder.node("Squeeze", [name, builder.ints(given)]), (*shape[:axis], *shape[axis + 1 :])


def slice_(builder: Builder, name: str, shape: Shape) -> Grown:
    if not shape:
        return None
    axis = builder.pick(range(len(shape)))
    start, end = builder.pick(((0, 2**40), (0, shape[axis]), (1, shape[axis]), (-1, 2**40)))
    size = len(range(shape[axis])[start:end])
    if size == 0:
        return None
    inputs = [name, builder.ints(start), builder.ints(end), builder.ints(axis)]
    return builder.node("Slice", inputs), (*shape[:axis], size, *shape[axis + 1 :])


def concat(builder: Builder, name: str, shape: Shape) -> Grown:
    if not shape:
        return None
    count = builder.pick((1, 2))
    grown = builder.node("Concat", [name] * count, axis=0)
    return grown, (shape[0] * count, *shape[1:])


def expand(builder: Builder, name: str, shape: Shape) -> Grown:
    target = builder.pick((shape, (1,), (2, *shape)))
    grown = builder.node("Expand", [name, builder.ints(*target)])
    return grown, np.broadcast_shapes(shape, target)


def pad(builder: Builder, name: str, shape: Shape) -> Grown:
    after = [builder.pick((0, 0, 1)) for _ in shape]
    grown = builder.node("Pad", [name, builder.ints(*[0] * len(shape), *after)])
    return grown, tuple(dim + extra for dim, extra in zip(shape, after, strict=True))


def reshape_as_itself(builder: Builder, name: str, shape: Shape) -> Grown:
    if not shape:
        return None
    dims = builder.node("Shape", [name])
    index = builder.pick(range(len(shape)))
    kept = builder.node("Gather", [dims, builder.ints(index)])
    target = builder.node("Concat", [kept, builder.ints(-1)], axis=0)
    size = shape[index]
    return builder.node("Reshape", [name, target]), (size, int(np.prod(shape)) // size)


def branch(builder: Builder, name: str, shape: Shape) -> Grown:
    condition = builder.constant(np.array(builder.toss()))
    bodies: dict[str, Any] = {}
    for key in ("then_branch", "else_branch"):
        prefix = f"b{len(builder.nodes)}_{key}"
        middle = helper.make_node(builder.pick(UNARY), [name], [f"{prefix}_m"])
        last = helper.make_node(builder.pick(UNARY), [f"{prefix}_m"], [f"{prefix}_o"])
        kind = helper.make_tensor_value_info(f"{prefix}_o", TensorProto.FLOAT, [None] * len(shape))
        bodies[key] = helper.make_graph([middle, last], prefix, [], [kind])
    return builder.node("If", [condition], **bodies), shape


STEPS: tuple[Callable[[Builder, str, Shape], Grown], ...] = (
    unary,
    binary,
    with_number,
    with_number,
    transpose,
    transpose,
    reshape,
    copying_reshape,
    flatten,
    unsqueeze,
    squeeze,
    slice_,
    concat,
    expand,
    pad,
    reshape_as_itself,
    branch,
)


def random_model(seed: int, nodes: int) -> onnx.ModelProto:
    builder = Builder(seed)
    for _ in range(nodes):
        builder.grow()
    return builder.model()


def feed() -> dict[str, npt.NDArray[Any]]:
    generator = np.random.default_rng(0)
    sizes = {"x": (2, 3, 4), "s": (3, 4)}
    return {name: generator.choice(DATA, shape) for name, shape in sizes.items()}


def outputs(model: ir.Model) -> list[bytes]:
    from onnxfold.runtime.session import Session

    with np.errstate(all="ignore"):
        got = Session(model).run(feed()).values()
    # The bits of a NaN are not defined.
    return [np.where(np.isnan(array), np.nan, array).tobytes() for array in got]


@given(seed=SEEDS, nodes=st.integers(1, 25))
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
)
def test_every_exact_pass_keeps_every_bit(seed: int, nodes: int) -> None:
    proto = random_model(seed, nodes)
    onnx.checker.check_model(proto)
    wanted = outputs(ir.from_proto(proto))
    for pipeline in (*EACH_ALONE, f"infer-shapes,{SIMPLIFY}"):
        result = Pipeline(parse_passes(pipeline)).run(ir.from_proto(proto))
        onnx.checker.check_model(ir.to_proto(result.model))
        assert outputs(result.model) == wanted, pipeline


@given(seed=SEEDS, nodes=st.integers(1, 25))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_second_run_changes_nothing(seed: int, nodes: int) -> None:
    proto = random_model(seed, nodes)
    passes = parse_passes(f"{SIMPLIFY},{SIMPLIFY},{SIMPLIFY}")
    model = Pipeline(passes).run(ir.from_proto(proto)).model
    again = Pipeline(parse_passes(SIMPLIFY)).run(model)
    assert not again.modified, [r.rules for _, r in again.results]
