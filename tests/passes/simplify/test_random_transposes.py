"""move-transposes and absorb-transposes on random graphs: same bits, no more transposes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.walk import all_nodes

Shape = tuple[int, ...]
Grown = tuple[str, Shape] | None
DATA = np.array([0.0, -0.0, 1, -1, 0.3, -2.7, 11], dtype=np.float32)
UNARY = ("Abs", "Ceil", "Neg", "LeakyRelu", "Sign", "Round", "Identity")
BINARY = ("Add", "Sub", "Mul")
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Builder:
    """Grows a random model from one input in channels first."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: list[tuple[str, Shape]] = [("x", (2, 3, 4, 5))]

    def node(self, op_type: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
        return names[0]

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def numbers(self, shape: Shape) -> str:
        count = int(np.prod(shape))
        data = np.array(self.random.choices(DATA[1:].tolist(), k=count), np.float32)
        return self.constant(data.reshape(shape))

    def axis(self, shape: Shape) -> int:
        return self.random.randrange(len(shape)) - self.random.choice((0, len(shape)))

    def grow(self, steps: tuple[Callable[[Builder, str, Shape], Grown], ...]) -> None:
        recent = self.values[-1:] if self.random.random() < 0.8 else self.values
        name, shape = self.random.choice(recent)
        grown = self.random.choice(steps)(self, name, shape) if shape else None
        if grown is not None and np.prod(grown[1]) <= 600:
            self.values.append(grown)

    def model(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        outputs = [name for name, _ in self.values if name not in read]
        # Some in the middle too.
        outputs += [n for n, _ in self.values[1:] if n in read and self.random.random() < 0.1]
        ranks = dict(self.values)
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 5])],
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(ranks[n]))
                for n in outputs
                if n != "x"
            ],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 18)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def transpose(builder: Builder, name: str, shape: Shape) -> Grown:
    perm = tuple(builder.random.sample(range(len(shape)), len(shape)))
    if len(shape) == 4 and builder.random.random() < 0.8:
        perm = builder.random.choice((LAST, FIRST))
    return builder.node("Transpose", [name], perm=perm), tuple(shape[a] for a in perm)


def unary(builder: Builder, name: str, shape: Shape) -> Grown:
    return builder.node(builder.random.choice(UNARY), [name]), shape


def binary(builder: Builder, name: str, shape: Shape) -> Grown:
    others = [other for other, dims in builder.values if dims == shape]
    operands = [name, builder.random.choice(others)]
    return builder.node(builder.random.choice(BINARY), operands), shape


def broadcast(builder: Builder, name: str, shape: Shape) -> Grown:
    dims = tuple(builder.random.choice((1, dim)) for dim in shape)
    dims = dims[builder.random.randrange(len(dims) + 1) :]
    operands = [name, builder.numbers(dims)]
    builder.random.shuffle(operands)
    return builder.node(builder.random.choice(BINARY), operands), shape


def where(builder: Builder, name: str, shape: Shape) -> Grown:
    dims = tuple(builder.random.choice((1, dim)) for dim in shape)
    condition = builder.node("Greater", [name, builder.numbers(())])
    return builder.node("Where", [condition, name, builder.numbers(dims)]), shape


def concat(builder: Builder, name: str, shape: Shape) -> Grown:
    others = [other for other, dims in builder.values if dims == shape]
    operands = [name, builder.random.choice([*others, builder.numbers(shape)])]
    axis = builder.axis(shape)
    grown = list(shape)
    grown[axis] *= 2
    return builder.node("Concat", operands, axis=axis), tuple(grown)


def split(builder: Builder, name: str, shape: Shape) -> Grown:
    axis = builder.axis(shape)
    if shape[axis] < 2 or axis % len(shape) == 0:
        return None
    sizes = (1, shape[axis] - 1)
    first = builder.node("Split", [name, builder.ints(*sizes)], 2, axis=axis)
    parts = [tuple(n if a == axis % len(shape) else d for a, d in enumerate(shape)) for n in sizes]
    builder.values.append((f"{first[:-1]}1", parts[1]))
    return first, parts[0]


def slice_(builder: Builder, name: str, shape: Shape) -> Grown:
    axis = builder.axis(shape)
    if shape[axis] < 2 or axis % len(shape) == 0:
        return None
    grown = list(shape)
    grown[axis] -= 1
    if axis == 1:
        inputs = [name, builder.ints(0, 1), builder.ints(99, 99)]
    else:
        inputs = [name, builder.ints(1), builder.ints(2**40), builder.ints(axis)]
    return builder.node("Slice", inputs), tuple(grown)


def pad(builder: Builder, name: str, shape: Shape) -> Grown:
    pads = [builder.random.choice((0, 1)) for _ in range(2 * len(shape))]
    pads[0] = pads[len(shape)] = 0
    grown = [d + a + b for d, a, b in zip(shape, pads, pads[len(shape) :], strict=False)]
    mode = builder.random.choice(("constant", "edge"))
    if builder.random.random() < 0.3:
        axis = 1 if len(shape) > 1 else 0
        grown = list(shape)
        grown[axis] += 3
        inputs = [name, builder.ints(1, 2), builder.numbers(()), builder.ints(axis)]
        return builder.node("Pad", inputs), tuple(grown)
    return builder.node("Pad", [name, builder.ints(*pads)], mode=mode), tuple(grown)


def reduction(builder: Builder, name: str, shape: Shape) -> Grown:
    axis, keep = builder.axis(shape), builder.random.choice((0, 1))
    if axis % len(shape) == 0:
        return None
    one = () if not keep else (1,)
    at = axis % len(shape)
    grown = (*shape[:at], *one, *shape[at + 1 :])
    if builder.random.random() < 0.3:
        best = builder.node("ArgMax", [name], axis=axis, keepdims=keep)
        return builder.node("Cast", [best], to=TensorProto.FLOAT), grown
    picked = builder.constant(np.array(0, np.int64))
    first = builder.node("Gather", [name, picked], axis=axis)
    if keep:
        first = builder.node("Unsqueeze", [first, builder.ints(at)])
    return first, grown


def maximum(builder: Builder, name: str, shape: Shape) -> Grown:
    axis, keep = builder.random.randrange(1, len(shape) + 1) - len(shape) - 1, 0
    if len(shape) < 2 or axis % len(shape) == 0:
        return None
    at = axis % len(shape)
    inputs = [name, builder.ints(axis)]
    return builder.node("ReduceMax", inputs, keepdims=keep), (*shape[:at], *shape[at + 1 :])


def rectify(builder: Builder, name: str, shape: Shape) -> Grown:
    if builder.random.random() < 0.5:
        return builder.node("Relu", [name]), shape
    return builder.node("Max", [name, builder.numbers(shape[-1:])]), shape


def unsqueeze(builder: Builder, name: str, shape: Shape) -> Grown:
    at = builder.random.randrange(len(shape) + 1)
    if len(shape) > 4:
        return None
    return builder.node("Unsqueeze", [name, builder.ints(at)]), (*shape[:at], 1, *shape[at:])


def squeeze(builder: Builder, name: str, shape: Shape) -> Grown:
    if 1 not in shape or len(shape) < 2:
        return None
    at = shape.index(1)
    return builder.node("Squeeze", [name, builder.ints(at)]), (*shape[:at], *shape[at + 1 :])


def reshape(builder: Builder, name: str, shape: Shape) -> Grown:
    at = builder.random.randrange(1, max(2, len(shape) - 1))
    if len(shape) < 3:
        return None
    joined = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
    target = (0, -1, *joined[2:]) if builder.random.random() < 0.5 else (-1, *joined[1:])
    return builder.node("Reshape", [name, builder.ints(*target)]), joined


def resplit(builder: Builder, name: str, shape: Shape) -> Grown:
    even = [axis for axis, dim in enumerate(shape) if dim % 2 == 0 and axis]
    if not even or len(shape) > 4:
        return None
    at = builder.random.choice(even)
    grown = (*shape[:at], 2, shape[at] // 2, *shape[at + 1 :])
    return builder.node("Reshape", [name, builder.ints(-1, *grown[1:])]), grown


def quantize(builder: Builder, name: str, shape: Shape) -> Grown:
    axis = builder.axis(shape)
    scale, zero, attributes = builder.numbers(()), builder.constant(np.array(3, np.int8)), {}
    if axis % len(shape):
        count = shape[axis]
        scale = builder.constant(np.linspace(0.1, 0.5, count, dtype=np.float32))
        zero = builder.constant(np.arange(count).astype(np.int8))
        attributes = {"axis": axis}
    else:
        scale = builder.constant(np.array(0.25, np.float32))
    codes = builder.node("QuantizeLinear", [name, scale, zero], **attributes)
    if len(shape) == 4 and builder.random.random() < 0.5:
        perm = builder.random.choice((LAST, FIRST))
        codes = builder.node("Transpose", [codes], perm=perm)
        shape = tuple(shape[a] for a in perm)
        if attributes:
            attributes = {"axis": perm.index(axis % 4)}
    return builder.node("DequantizeLinear", [codes, scale, zero], **attributes), shape


def expand(builder: Builder, name: str, shape: Shape) -> Grown:
    grown = tuple(2 if dim == 1 else dim for dim in shape)
    target = (1, *grown[1:]) if shape[0] != 1 else grown
    return builder.node("Expand", [name, builder.ints(*target)]), grown


def gather(builder: Builder, name: str, shape: Shape) -> Grown:
    axis = builder.axis(shape)
    at = axis % len(shape)
    if at == 0 or len(shape) < 2:
        return None
    if builder.random.random() < 0.5:
        index = builder.constant(np.array(shape[axis] - 1, np.int64))
        return builder.node("Gather", [name, index], axis=axis), (*shape[:at], *shape[at + 1 :])
    picked = builder.ints(*reversed(range(shape[axis])))
    return builder.node("Gather", [name, picked], axis=axis), shape


def tile(builder: Builder, name: str, shape: Shape) -> Grown:
    repeats = [builder.random.choice((1, 1, 2)) for _ in shape]
    grown = tuple(d * r for d, r in zip(shape, repeats, strict=True))
    return builder.node("Tile", [name, builder.ints(*repeats)]), grown


def resize(builder: Builder, name: str, shape: Shape) -> Grown:
    scales = [1, *(builder.random.choice((1, 2)) for _ in shape[1:])]
    grown = tuple(d * s for d, s in zip(shape, scales, strict=True))
    operand = builder.constant(np.array(scales, np.float32))
    how: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor"}
    how["coordinate_transformation_mode"] = "asymmetric"
    return builder.node("Resize", [name, "", operand], **how), grown


def pool(builder: Builder, name: str, shape: Shape) -> Grown:
    """What stays in channels first."""
    if len(shape) != 4:
        return None
    return builder.node("MaxPool", [name], kernel_shape=[1, 1]), shape


def convolution(builder: Builder, name: str, shape: Shape) -> Grown:
    if len(shape) != 4:
        return None
    return builder.node("Conv", [name, builder.numbers((2, shape[1], 1, 1))]), (
        shape[0],
        2,
        *shape[2:],
    )


def sizes(builder: Builder, name: str, shape: Shape) -> Grown:
    """A reader that asks for the shape only."""
    dims = builder.node("Shape", [name], start=0, end=1)
    rest = builder.ints(*shape[1:])
    target = builder.node("Concat", [dims, rest], axis=0)
    return builder.node("Reshape", [name, target]), shape


def branch(builder: Builder, name: str, shape: Shape) -> Grown:
    """A reader in a body."""
    bodies: dict[str, Any] = {}
    for key in ("then_branch", "else_branch"):
        out = f"b{len(builder.nodes)}_{key}"
        kind = helper.make_tensor_value_info(out, TensorProto.FLOAT, [None] * len(shape))
        bodies[key] = helper.make_graph([helper.make_node("Neg", [name], [out])], out, [], [kind])
    return builder.node("If", [builder.constant(np.array(True))], **bodies), shape


EXACT = (
    *(transpose,) * 8,
    *(unary, unary, binary, broadcast, broadcast, where, concat, split, slice_, pad, reduction),
    *(unsqueeze, squeeze, squeeze, reshape, resplit, quantize, quantize, expand, gather, tile),
    *(resize, pool, convolution, sizes, branch),
)


def softmax(builder: Builder, name: str, shape: Shape) -> Grown:
    return builder.node("Softmax", [name], axis=builder.axis(shape)), shape


def curve(builder: Builder, name: str, shape: Shape) -> Grown:
    return builder.node(builder.random.choice(("Sigmoid", "Tanh", "Erf")), [name]), shape


def mean(builder: Builder, name: str, shape: Shape) -> Grown:
    if len(shape) < 3:
        return None
    inputs = [name, builder.ints(1, 2)]
    return builder.node("ReduceMean", inputs, keepdims=1), (shape[0], 1, 1, *shape[3:])


def product(builder: Builder, name: str, shape: Shape) -> Grown:
    if len(shape) < 3:
        return None
    rows = int(np.prod(shape[1:]))
    flat = builder.node("Flatten", [name])
    flat = builder.node("Relu", [flat]) if builder.random.random() < 0.5 else flat
    if builder.random.random() < 0.5:
        return builder.node("Gemm", [flat, builder.numbers((7, rows))], transB=1), (shape[0], 7)
    codes = np.arange(rows * 4, dtype=np.int8).reshape(rows, 4)
    scale = builder.constant(np.linspace(0.01, 0.02, 4, dtype=np.float32))
    weights = builder.node("DequantizeLinear", [builder.constant(codes), scale], axis=1)
    return builder.node("MatMul", [flat, weights]), (shape[0], 4)


def unfolded(builder: Builder, name: str, shape: Shape) -> Grown:
    if len(shape) != 2:
        return None
    if builder.random.random() < 0.5:
        codes = np.arange(shape[1] * 24).astype(np.int8).reshape(shape[1], 24)
        scale = builder.constant(np.linspace(0.01, 0.02, 24, dtype=np.float32))
        weights = builder.node("DequantizeLinear", [builder.constant(codes), scale], axis=1)
        wide = builder.node("MatMul", [name, weights])
    else:
        inputs = [name, builder.numbers((24, shape[1])), builder.numbers((24,))]
        wide = builder.node("Gemm", inputs, transB=1)
    wide = builder.node("Add", [builder.numbers((24,)), wide])
    wide = builder.node("LeakyRelu", [wide])
    planes = builder.node("Reshape", [wide, builder.ints(-1, 2, 3, 4)])
    return builder.node("Transpose", [planes], perm=FIRST), (shape[0], 4, 2, 3)


# What turns a rounding error into a step stays out of the other table.
STEADY = tuple(step for step in EXACT if step not in (unary, where, quantize, reduction))
ROUNDING = (
    *STEADY,
    maximum,
    rectify,
    rectify,
    softmax,
    curve,
    mean,
    mean,
    product,
    product,
    product,
)


def grown(seed: int, nodes: int, steps: Any) -> onnx.ModelProto:
    builder = Builder(seed)
    for _ in range(nodes):
        builder.grow(steps)
    return builder.model()


def outputs(model: ir.Model) -> list[npt.NDArray[Any]]:
    from onnxfold.runtime.session import Session

    feed = {"x": np.random.default_rng(0).choice(DATA, (2, 3, 4, 5))}
    return list(Session(model).run(feed).values())


def transposes(model: ir.Model) -> int:
    """Those that do more than move axes of one element, which merge-transposes reshapes."""
    model = Pipeline(parse_passes("merge-transposes")).run(model.clone()).model
    return sum(node.op_type == "Transpose" for node in all_nodes(model))


def moved(proto: onnx.ModelProto, name: str) -> tuple[ir.Model, ir.Model]:
    """The model with what precedes the pass, and with the pass; a second run changes nothing."""
    before = "infer-shapes,merge-transposes,eliminate-common-subexpressions,remove-dead-code"
    original = Pipeline(parse_passes(before)).run(ir.from_proto(proto)).model
    result = Pipeline(parse_passes(name)).run(original.clone())
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    again = Pipeline(parse_passes(name)).run(result.model.clone())
    assert not again.modified, [r.rules for _, r in again.results]
    return original, result.model


@given(seed=st.integers(0, 2**32 - 1), nodes=st.integers(2, 22))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_bit_stays(seed: int, nodes: int) -> None:
    proto = grown(seed, nodes, EXACT)
    if not proto.graph.output:
        return
    onnx.checker.check_model(proto)
    original, result = moved(proto, "move-transposes")
    assert transposes(result) <= transposes(original)
    for wanted, found in zip(outputs(original), outputs(result), strict=True):
        assert wanted.shape == found.shape
        assert wanted.tobytes() == found.tobytes()


@given(seed=st.integers(0, 2**32 - 1), nodes=st.integers(2, 22))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_sums_are_the_same_but_for_rounding(seed: int, nodes: int) -> None:
    proto = grown(seed, nodes, ROUNDING)
    if not proto.graph.output:
        return
    onnx.checker.check_model(proto)
    original, result = moved(proto, "absorb-transposes")
    assert transposes(result) <= transposes(original)
    for wanted, found in zip(outputs(original), outputs(result), strict=True):
        assert wanted.shape == found.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
