"""Fake-quantized graphs built node by node."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def fake_quant() -> Callable[..., FakeQuantGraph]:
    """``fake_quant(seed=0, opset=21)``: a builder of fake-quantized models."""

    def make(seed: int = 0, opset: int = 21) -> FakeQuantGraph:
        return FakeQuantGraph(seed, opset)

    return make
