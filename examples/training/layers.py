"""The layers that the tasks' networks are made of, written with onnx-graphsurgeon."""

from __future__ import annotations

import numpy as np

from fixtures.builder import Builder, Tensor


def dense(b: Builder, name: str, x: Tensor, inputs: int, outputs: int) -> Tensor:
    """Return x W + b; W is drawn, b is zero."""
    weight = b.weight(f"{name}.weight", inputs, outputs)
    return b.op("Gemm", x, weight, b.constant(f"{name}.bias", np.zeros(outputs)))


def convolution(b: Builder, name: str, x: Tensor, inputs: int, outputs: int) -> Tensor:
    """Return a 3 x 3 convolution of x that keeps its size."""
    weight = b.weight(f"{name}.weight", outputs, inputs, 3, 3)
    bias = b.constant(f"{name}.bias", np.zeros(outputs))
    return b.op("Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
