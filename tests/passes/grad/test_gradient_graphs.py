"""Random graphs of many operators: gradients against central differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fixtures.gradients.check import Array, check_gradient

Shape: TypeAlias = tuple[int, ...]
Draw: TypeAlias = Callable[[st.SearchStrategy[int]], int]

_LARGEST = 48
# Not those that the evaluator which gives the differences rounds to float32 or does not take.
_UNARY = (
    "Abs", "Atan", "Cos", "Elu", "HardSwish", "Identity", "LeakyRelu", "Mish",
    "Neg", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Tanh",
)  # fmt: skip
_BINARY = ("Add", "Max", "Min", "Mul", "PRelu", "Sub", "Sum")
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip


@dataclass
class Graph:
    """A graph that grows, with the shapes of its values."""

    shapes: dict[str, Shape]
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    stored: list[onnx.TensorProto] = field(default_factory=list[onnx.TensorProto])

    def add(self, op_type: str, *inputs: str, shape: Shape, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        node = helper.make_node(op_type, inputs, [name])
        node.attribute.extend(helper.make_attribute(*each) for each in attributes.items())
        self.nodes.append(node)
        self.shapes[name] = shape
        return name

    def store(self, array: Array) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(onnx.numpy_helper.from_array(array, name))
        return name

    def ints(self, *numbers: int) -> str:
        return self.store(np.array(numbers, np.int64))


def pick(draw: Draw, choices: tuple[str, ...] | list[str]) -> str:
    return choices[draw(st.integers(0, len(choices) - 1))]


def grow(graph: Graph, draw: Draw) -> None:
    """Add one operator on values that are there."""
    value = pick(draw, list(graph.shapes))
    steps = (_unary, _binary, _reduce, _move, _repeat, _cut, _look_up, _multiply, _normalize)
    steps[draw(st.integers(0, len(steps) - 1))](graph, value, draw)


def _unary(graph: Graph, value: str, draw: Draw) -> None:
    graph.add(pick(draw, _UNARY), value, shape=graph.shapes[value])


def _binary(graph: Graph, value: str, draw: Draw) -> None:
    op_type = pick(draw, _BINARY)
    left = graph.shapes[value]
    fitting = [
        name
        for name, right in graph.shapes.items()
        if (op_type != "PRelu" and _broadcast(left, right)) or _broadcast(left, right) == left
    ]
    other = pick(draw, fitting)
    shape = _broadcast(left, graph.shapes[other])
    assert shape is not None
    graph.add(op_type, value, other, shape=shape)


def _broadcast(left: Shape, right: Shape) -> Shape | None:
    try:
        found = np.broadcast_shapes(left, right)
    except ValueError:
        return None
    return found if np.prod(found) <= _LARGEST else None


def _reduce(graph: Graph, value: str, draw: Draw) -> None:
    shape = graph.shapes[value]
    axes = [axis for axis in range(len(shape)) if draw(st.integers(0, 1))]
    keep = draw(st.integers(0, 1))
    left = [1 if axis in axes else size for axis, size in enumerate(shape)] if keep else None
    rest = left or [size for axis, size in enumerate(shape) if axis not in axes]
    if not axes:
        rest = [1] * len(shape) if keep else []
    inputs = [value, graph.ints(*axes)] if axes else [value]
    graph.add(pick(draw, _REDUCTIONS), *inputs, shape=tuple(rest), keepdims=keep)


def _move(graph: Graph, value: str, draw: Draw) -> None:
    shape = graph.shapes[value]
    if draw(st.integers(0, 1)):
        flat = graph.ints(-1)
        graph.add("Reshape", value, flat, shape=(int(np.prod(shape)),))
        return
    order = list(range(len(shape)))
    turn = draw(st.integers(0, max(len(shape) - 1, 0)))
    order = order[turn:] + order[:turn]
    if not order:
        graph.add("Unsqueeze", value, graph.ints(0), shape=(1,))
        return
    graph.add("Transpose", value, shape=tuple(shape[axis] for axis in order), perm=order)


def _repeat(graph: Graph, value: str, draw: Draw) -> None:
    shape = graph.shapes[value]
    if not shape or np.prod(shape) * 2 > _LARGEST:
        _unary(graph, value, draw)
        return
    axis = draw(st.integers(0, len(shape) - 1))
    longer = tuple(size * 2 if each == axis else size for each, size in enumerate(shape))
    if draw(st.integers(0, 1)):
        graph.add("Concat", value, value, shape=longer, axis=axis)
        return
    repeats = [2 if each == axis else 1 for each in range(len(shape))]
    graph.add("Tile", value, graph.ints(*repeats), shape=longer)


def _cut(graph: Graph, value: str, draw: Draw) -> None:
    shape = graph.shapes[value]
    if not shape or max(shape) < 2:
        _unary(graph, value, draw)
        return
    axis = int(np.argmax(shape))
    step = (1, 2, -1)[draw(st.integers(0, 2))]
    start, end = (1, shape[axis]) if step > 0 else (-1, -shape[axis] - 1)
    size = len(range(*slice(start, None if step < 0 else end, step).indices(shape[axis])))
    rest = tuple(size if each == axis else old for each, old in enumerate(shape))
    limits = [graph.ints(number) for number in (start, end, axis, step)]
    graph.add("Slice", value, *limits, shape=rest)


def _look_up(graph: Graph, value: str, draw: Draw) -> None:
    shape = graph.shapes[value]
    if not shape:
        _unary(graph, value, draw)
        return
    axis = draw(st.integers(0, len(shape) - 1))
    rows = [draw(st.integers(-shape[axis], shape[axis] - 1)) for _ in range(2)]
    rest = tuple(2 if each == axis else old for each, old in enumerate(shape))
    graph.add("Gather", value, graph.ints(*rows), shape=rest, axis=axis)


def _multiply(graph: Graph, value: str, draw: Draw) -> None:
    shape = graph.shapes[value]
    if not shape:
        _unary(graph, value, draw)
        return
    generator = np.random.default_rng(len(graph.stored))
    weight = graph.store(generator.uniform(-1, 1, (shape[-1], 2)).astype(np.float32))
    graph.add("MatMul", value, weight, shape=(*shape[:-1], 2))


def _normalize(graph: Graph, value: str, draw: Draw) -> None:
    shape = graph.shapes[value]
    if not shape:
        _unary(graph, value, draw)
        return
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    graph.add(("Softmax", "LogSoftmax")[draw(st.integers(0, 1))], value, shape=shape, axis=axis)


def check(data: st.DataObject) -> None:
    shapes: dict[str, Shape] = {"x": (2, 3), "z": (3,)}
    graph = Graph(dict(shapes))

    def draw(strategy: st.SearchStrategy[int]) -> int:
        return data.draw(strategy)

    for _ in range(draw(st.integers(2, 7))):
        grow(graph, draw)
    used = {name for node in graph.nodes for name in node.input}
    ends = [name for name in graph.shapes if name not in used and name not in shapes]
    # What grows without bound would hide the rest.
    outputs = [graph.add("Tanh", name, shape=graph.shapes[name]) for name in ends]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, graph.shapes[name])
                for name in outputs
            ],
            graph.stored,
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    feeds = {n: generator.uniform(-2, 2, s).astype(np.float32) for n, s in shapes.items()}
    check_gradient(model, feeds, tolerance=3e-4, floor=0.01)


@given(st.data())
@settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_random_graphs(data: st.DataObject) -> None:
    check(data)


@pytest.mark.slow
@given(st.data())
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_many_random_graphs(data: st.DataObject) -> None:
    check(data)
