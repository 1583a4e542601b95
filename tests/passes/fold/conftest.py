"""Random fake-quantized graphs over the rules of the fold, and the checks they must pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


@dataclass
class FakeQuantGraph:
    """Builds a fake-quantized model node by node; sizes are small, scales fit the data."""

    seed: int
    opset: int = 21
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    constants: dict[str, Array] = field(default_factory=dict[str, Array])
    inputs: dict[str, tuple[int, tuple[int, ...]]] = field(
        default_factory=dict[str, tuple[int, tuple[int, ...]]]
    )
    outputs: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.numbers = np.random.default_rng(self.seed)

    def name(self, base: str) -> str:
        return f"{base}_{len(self.nodes) + len(self.constants) + len(self.inputs)}"

    def constant(self, array: Any, base: str = "c") -> str:
        name = self.name(base)
        self.constants[name] = np.asarray(array)
        return name

    def input(self, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> str:
        name = self.name("x")
        self.inputs[name] = (dtype, shape)
        return name

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        base = self.name(op_type.lower())
        names = [base] if outputs == 1 else [f"{base}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=base, **attributes))
        return base if outputs == 1 else names

    def quantize(self, value: str, scale: float, zero_point: int, dtype: str = "uint8") -> str:
        zero = self.constant(np.array(zero_point, dtype), "zp")
        return self.op("QuantizeLinear", value, self.constant(np.float32(scale), "s"), zero)

    def dequantize(self, codes: str, scale: float, zero_point: int, dtype: str = "uint8") -> str:
        zero = self.constant(np.array(zero_point, dtype), "zp")
        return self.op("DequantizeLinear", codes, self.constant(np.float32(scale), "s"), zero)

    def fake(self, value: str, scale: float, zero_point: int, dtype: str = "uint8") -> str:
        codes = self.quantize(value, scale, zero_point, dtype)
        return self.dequantize(codes, scale, zero_point, dtype)

    def weights(
        self, shape: tuple[int, ...], axis: int | None, dtype: str = "int8", zero_point: int = 0
    ) -> tuple[str, Array]:
        """Dequantized constant weights, and their scales (one element where per tensor)."""
        codes = self.numbers.integers(-120, 121, shape) + zero_point
        info = np.iinfo(dtype)
        codes = np.clip(codes, info.min, info.max).astype(dtype)
        count = 1 if axis is None else shape[axis]
        scale = self.numbers.uniform(0.004, 0.01, count).astype(np.float32)
        zeros = np.full(count, zero_point, dtype)
        if axis is None:
            scale_name = self.constant(scale[0], "s")
            zero_name = self.constant(zeros[0], "zp")
            attributes: dict[str, int] = {}
        else:
            scale_name, zero_name = self.constant(scale, "s"), self.constant(zeros, "zp")
            attributes = {"axis": axis}
        name = self.op(
            "DequantizeLinear", self.constant(codes, "w"), scale_name, zero_name, **attributes
        )
        return name, scale

    def bias(self, channels: int, units: Array) -> str:
        """An int32 bias in the given units, dequantized."""
        codes = self.numbers.integers(-3000, 3000, channels).astype(np.int32)
        scale = np.asarray(units, np.float32)
        scale_name = self.constant(scale if scale.size > 1 else scale.reshape(()), "s")
        attributes = {"axis": 0} if scale.size > 1 else {}
        return self.op("DequantizeLinear", self.constant(codes, "b"), scale_name, **attributes)

    def model(self) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "fake_quantized",
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in self.inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        onnx.checker.check_model(inferred)
        return ir.from_proto(inferred)

    def feed(self, seed: int = 0) -> dict[str, Array]:
        numbers = np.random.default_rng(seed)
        feed: dict[str, Array] = {}
        for name, (dtype, shape) in self.inputs.items():
            kind = helper.tensor_dtype_to_np_dtype(dtype)
            if kind.kind == "f":
                feed[name] = numbers.standard_normal(shape).astype(kind)
            else:
                info = np.iinfo(kind)
                feed[name] = numbers.integers(info.min, info.max, shape, endpoint=True, dtype=kind)
        return feed


@dataclass(frozen=True)
class _Value:
    name: str
    shape: tuple[int, ...]
    spread: float
    quantized: bool


class _RandomGraph:
    """Draws a graph: images or sequences, one to eight ops, several consumers and outputs."""

    def __init__(self, choices: random.Random) -> None:
        self.pick = choices
        self.graph = FakeQuantGraph(choices.randrange(2**31))
        self.signed = choices.random() < 0.3
        self.values: list[_Value] = []
        self.unread: dict[str, None] = {}

    def draw(self) -> FakeQuantGraph:
        images = self.pick.random() < 0.6
        shape = (2, 4, 8, 8) if images else self.pick.choice([(3, 8), (2, 5, 8)])
        if self.pick.random() < 0.2:
            dtype = TensorProto.INT8 if self.signed else TensorProto.UINT8
            codes = self.graph.input(shape, dtype)
            zero = self._zero()
            real = self.graph.dequantize(codes, 0.02, zero, self._dtype())
            self._add(real, shape, 1.5, quantized=True)
        else:
            source = self.graph.input(shape)
            self._finish(source, shape, 1.0, chance=0.95)
        steps = self._image_steps() if images else self._sequence_steps()
        for _ in range(self.pick.randint(1, 8)):
            self.pick.choice(steps)(self._value())
        self.graph.outputs += list(self.unread)[-4:] or [self.values[-1].name]
        if self.pick.random() < 0.3:
            self.graph.outputs.append(self.pick.choice(self.values).name)
        names = dict.fromkeys(self.graph.outputs)
        self.graph.outputs = [
            self.graph.op("Relu", name) if name in self.graph.inputs else name for name in names
        ]
        return self.graph

    def _image_steps(self) -> list[Callable[[_Value], None]]:
        return [
            self._conv,
            self._conv,
            self._conv,
            self._binary,
            self._binary,
            self._clip,
            self._pool,
            self._move,
            self._move,
            self._concat,
            self._unknown,
            self._scale,
        ]

    def _sequence_steps(self) -> list[Callable[[_Value], None]]:
        return [
            self._matmul,
            self._matmul,
            self._matmul,
            self._gemm,
            self._attention,
            self._binary,
            self._clip,
            self._move,
            self._concat,
            self._unknown,
            self._scale,
        ]

    def _value(self) -> _Value:
        return self.values[-1] if self.pick.random() < 0.7 else self.pick.choice(self.values)

    def _dtype(self) -> str:
        return "int8" if self.signed else "uint8"

    def _zero(self) -> int:
        low, high = (-128, 127) if self.signed else (0, 255)
        middle = (low + high + 1) // 2
        return self.pick.choice([low, middle, middle, middle - 7, middle + 20, low + 60])

    def _add(self, name: str, shape: tuple[int, ...], spread: float, *, quantized: bool) -> None:
        self.values.append(_Value(name, shape, spread, quantized))
        self.unread[name] = None

    def _read(self, value: _Value) -> str:
        self.unread.pop(value.name, None)
        return value.name

    def _finish(
        self, name: str, shape: tuple[int, ...], spread: float, chance: float = 0.85
    ) -> None:
        """Maybe Relu or a Transpose pair, then mostly Q/DQ."""
        if self.pick.random() < 0.2:
            name = self.graph.op("Relu", name)
        if self.pick.random() >= chance:
            self._add(name, shape, spread, quantized=False)
            return
        scale = round(spread * self.pick.choice([5.0, 6.0, 7.0]) / 255, 6)
        zero = self._zero()
        codes = self.graph.quantize(name, scale, zero, self._dtype())
        if self.pick.random() < 0.1:
            self.graph.outputs.append(codes)
        perm: tuple[int, ...] | None = None
        if self.pick.random() < 0.1:
            perm = (*range(1, len(shape)), 0)
            codes = self.graph.op("Transpose", codes, perm=perm)
        real = self.graph.dequantize(codes, scale, zero, self._dtype())
        if perm is not None:
            real = self.graph.op("Transpose", real, perm=tuple(np.argsort(perm).tolist()))
        self._add(real, shape, spread, quantized=True)

    def _weights(self, shape: tuple[int, ...], axis: int) -> tuple[str, Array]:
        kind = self.pick.random()
        channel_axis = axis if self.pick.random() < 0.7 else None
        if kind < 0.7:
            return self.graph.weights(shape, channel_axis)
        if kind < 0.85:
            return self.graph.weights(shape, channel_axis, "uint8", self.pick.choice([128, 117]))
        if kind < 0.95:
            return self.graph.weights(shape, channel_axis, "int8", self.pick.choice([3, -40]))
        turned = tuple(reversed(shape))
        turned_axis = None if channel_axis is None else len(shape) - 1 - channel_axis
        name, scale = self.graph.weights(turned, turned_axis)
        return self.graph.op("Transpose", name), scale

    def _bias(self, value: _Value, channels: int, scale: Array) -> str | None:
        kind = self.pick.random()
        if kind < 0.3:
            return None
        if kind < 0.6:
            return self.graph.constant(
                self.graph.numbers.standard_normal(channels).astype(np.float32), "bias"
            )
        units = scale * np.float32(0.02 if kind < 0.9 else 0.011)
        return self.graph.bias(channels, units)

    def _conv(self, value: _Value) -> None:
        if len(value.shape) != 4 or value.shape[2] < 3 or value.shape[3] < 3:
            return
        channels = value.shape[1]
        group = self.pick.choice([1, 1, channels])
        kernel = self.pick.choice([1, 3])
        outputs = channels * self.pick.choice([1, 2]) if channels <= 8 else channels
        shape = (outputs, channels // group, kernel, kernel)
        weights, scale = self._weights(shape, 0)
        inputs = [self._read(value), weights]
        bias = self._bias(value, outputs, scale)
        follows = bias is not None and self.pick.random() < 0.2
        if bias is not None and not follows:
            inputs.append(bias)
        name = self.graph.op("Conv", *inputs, group=group, pads=[kernel // 2] * 4)
        if follows and bias is not None:
            shaped = self.graph.constant(np.array([1, outputs, 1, 1], np.int64), "shape")
            name = self.graph.op("Add", name, self.graph.op("Reshape", bias, shaped))
        spread = value.spread * 0.5 * float(np.sqrt(np.prod(shape[1:]))) + 0.5
        self._finish(name, (value.shape[0], outputs, *value.shape[2:]), spread)

    def _matmul(self, value: _Value) -> None:
        depth, channels = value.shape[-1], self.pick.choice([4, 8])
        weights, scale = self._weights((depth, channels), 1)
        name = self.graph.op("MatMul", self._read(value), weights)
        bias = self._bias(value, channels, scale)
        if bias is not None:
            name = self.graph.op("Add", *self._shuffled(name, bias))
        spread = value.spread * 0.5 * float(np.sqrt(depth)) + 0.5
        self._finish(name, (*value.shape[:-1], channels), spread)

    def _gemm(self, value: _Value) -> None:
        if len(value.shape) != 2:
            return
        channels, transposed = self.pick.choice([4, 8]), self.pick.random() < 0.5
        depth = value.shape[1]
        shape = (channels, depth) if transposed else (depth, channels)
        weights, scale = self._weights(shape, 0 if transposed else 1)
        inputs = [self._read(value), weights]
        bias = self._bias(value, channels, scale)
        if bias is not None:
            inputs.append(bias)
        alpha, beta = self.pick.choice([(1.0, 1.0), (1.0, 1.0), (0.5, 1.0), (1.0, 0.25)])
        name = self.graph.op("Gemm", *inputs, transB=int(transposed), alpha=alpha, beta=beta)
        spread = value.spread * 0.5 * float(np.sqrt(depth)) + 0.5
        self._finish(name, (value.shape[0], channels), spread)

    def _attention(self, value: _Value) -> None:
        perm = (*range(len(value.shape) - 2), len(value.shape) - 1, len(value.shape) - 2)
        turned = self.graph.op("Transpose", self._read(value), perm=perm)
        name = self.graph.op("MatMul", value.name, turned)
        shape = (*value.shape[:-1], value.shape[-2])
        self._finish(name, shape, value.spread**2 * float(np.sqrt(value.shape[-1])))

    def _binary(self, value: _Value) -> None:
        op_type = self.pick.choice(["Add", "Mul"])
        same = [each for each in self.values if each.shape == value.shape]
        other = self.pick.choice(same)
        second = self._read(other)
        if self.pick.random() < 0.2:
            second = self.graph.constant(np.float32(self.pick.choice([0.5, 3.0, -1.5, 0.0])))
        spread = value.spread + other.spread + 1e-3
        if op_type == "Mul":
            spread = value.spread * max(other.spread, 1.0)
        name = self.graph.op(op_type, *self._shuffled(self._read(value), second))
        self._finish(name, value.shape, spread)

    def _scale(self, value: _Value) -> None:
        op_type = self.pick.choice(["Mul", "Div"])
        factor = self.graph.constant(np.float32(self.pick.choice([0.25, 0.3, 2.0])))
        self._finish(
            self.graph.op(op_type, self._read(value), factor), value.shape, value.spread, 0.5
        )

    def _clip(self, value: _Value) -> None:
        if self.pick.random() < 0.4:
            name = self.graph.op("Relu", self._read(value))
        else:
            low, high = self.pick.choice([(0.0, 6.0), (-0.3, 0.7), (-1e4, 1e4)])
            bounds = [self.graph.constant(np.float32(bound)) for bound in (low, high)]
            name = self.graph.op("Clip", self._read(value), *bounds)
        self._finish(name, value.shape, value.spread, 0.5)

    def _pool(self, value: _Value) -> None:
        if len(value.shape) != 4 or min(value.shape[2:]) < 2:
            return
        kind = self.pick.choice(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
        batch, channels, height, width = value.shape
        if kind.startswith("Global"):
            name = self.graph.op(kind, self._read(value))
            shape = (batch, channels, 1, 1)
        else:
            name = self.graph.op(kind, self._read(value), kernel_shape=[2, 2], strides=[2, 2])
            shape = (batch, channels, height // 2, width // 2)
        self._finish(name, shape, value.spread, 0.8)

    def _concat(self, value: _Value) -> None:
        same = [each for each in self.values if each.shape == value.shape]
        parts = [value, self.pick.choice(same)]
        names = [self._read(each) for each in parts]
        if self.pick.random() < 0.2:
            numbers = self.graph.numbers.standard_normal(value.shape).astype(np.float32)
            names.append(self.graph.constant(numbers))
        axis = len(value.shape) - 1
        name = self.graph.op("Concat", *names, axis=axis)
        shape = (*value.shape[:axis], value.shape[axis] * len(names))
        self._finish(name, shape, max(each.spread for each in parts))

    def _move(self, value: _Value) -> None:
        name, shape = self._read(value), value.shape
        kind = self.pick.choice(
            ["Transpose", "Reshape", "Pad", "Slice", "Split", "Gather", "Flatten", "Tile",
             "Unsqueeze", "Expand", "ReduceMax", "ReduceMin", "Resize", "SpaceToDepth",
             "DepthToSpace"]
        )  # fmt: skip
        match kind:
            case "Transpose":
                perm = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
                name = self.graph.op(kind, name, perm=perm)
                shape = tuple(shape[i] for i in perm)
            case "Reshape":
                name = self.graph.op(kind, name, self._ints(list(shape)))
            case "Pad":
                pads = [0] * (len(shape) - 1) + [1] + [0] * (len(shape) - 1) + [2]
                inputs = [name, self._ints(pads)]
                if self.pick.random() < 0.4:
                    inputs.append(self.graph.constant(np.float32(self.pick.choice([0.0, 0.4]))))
                name = self.graph.op(kind, *inputs)
                shape = (*shape[:-1], shape[-1] + 3)
            case "Slice":
                name = self.graph.op(kind, name, *map(self._ints, ([0], [1], [0])))
                shape = (1, *shape[1:])
            case "Split":
                if shape[-1] % 2:
                    return
                left, right = self.graph.op(kind, name, outputs=2, axis=-1, num_outputs=2)
                shape = (*shape[:-1], shape[-1] // 2)
                self._add(left, shape, value.spread, quantized=value.quantized)
                name = right
            case "Gather":
                name = self.graph.op(kind, name, self._ints([0, 0]), axis=0)
                shape = (2, *shape[1:])
            case "ReduceMax" | "ReduceMin":
                name = self._reduce(kind, name, len(shape) - 1)
                shape = (*shape[:-1], 1)
            case "Flatten":
                name = self.graph.op(kind, name, axis=1)
                shape = (shape[0], int(np.prod(shape[1:])))
            case "Tile":
                name = self.graph.op(kind, name, self._ints([1] * (len(shape) - 1) + [2]))
                shape = (*shape[:-1], shape[-1] * 2)
            case "Unsqueeze":
                name = self.graph.op(kind, name, self._ints([0]))
                name = self.graph.op("Squeeze", name, self._ints([0]))
            case "Expand":
                name = self.graph.op("Unsqueeze", name, self._ints([0]))
                name = self.graph.op("Expand", name, self._ints([2, *[1] * len(shape)]))
                name = self.graph.op("Gather", name, self._ints(1), axis=0)
            case _:
                name, shape = self._image_move(kind, name, shape)
        self._finish(name, shape, value.spread, 0.4)

    def _reduce(self, kind: str, name: str, axis: int) -> str:
        if self.graph.opset < 18:
            return self.graph.op(kind, name, axes=[axis])
        return self.graph.op(kind, name, self._ints([axis]))

    def _image_move(
        self, kind: str, name: str, shape: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        if len(shape) != 4:
            return name, shape
        batch, channels, height, width = shape
        if kind == "Resize" and channels * height * width < 4096:
            scales = self.graph.constant(np.array([1, 1, 2, 2], np.float32))
            name = self.graph.op(kind, name, "", scales, mode="nearest")
            return name, (batch, channels, height * 2, width * 2)
        if kind == "SpaceToDepth" and height % 2 == width % 2 == 0:
            name = self.graph.op(kind, name, blocksize=2)
            return name, (batch, channels * 4, height // 2, width // 2)
        if kind == "DepthToSpace" and channels % 4 == 0:
            name = self.graph.op(kind, name, blocksize=2)
            return name, (batch, channels // 4, height * 2, width * 2)
        return name, shape

    def _unknown(self, value: _Value) -> None:
        kind = self.pick.choice(["Sigmoid", "Tanh", "Erf", "Softmax", "HardSigmoid", "LeakyRelu"])
        self._finish(self.graph.op(kind, self._read(value)), value.shape, 0.6, 0.6)

    def _ints(self, numbers: Any) -> str:
        return self.graph.constant(np.array(numbers, np.int64), "i")

    def _shuffled(self, first: str, second: str) -> tuple[str, str]:
        return (first, second) if self.pick.random() < 0.5 else (second, first)


@pytest.fixture(scope="session")
def fake_quant() -> Callable[..., FakeQuantGraph]:
    """``fake_quant(seed=0, opset=21)``: a builder of fake-quantized models."""

    def make(seed: int = 0, opset: int = 21) -> FakeQuantGraph:
        return FakeQuantGraph(seed, opset)

    return make


@pytest.fixture(scope="session")
def random_fake_quant() -> Callable[[random.Random], FakeQuantGraph]:
    """``random_fake_quant(choices)``: a random fake-quantized graph over all rules."""

    def make(choices: random.Random) -> FakeQuantGraph:
        return _RandomGraph(choices).draw()

    return make
