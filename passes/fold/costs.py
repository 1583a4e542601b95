"""What kernels of ONNX Runtime cost: a table, and the few choices that need no table.

A table gives microseconds as sums over features (a constant, outputs, taps ...) of each family of
kernels, fitted to measurements; ``onnxfold tune`` measures one for another machine. The choices
that are the same wherever it was measured, by factors, are constants here. Microseconds, medians
of 40 interleaved runs, onnxruntime 1.32.0 on x86-64 with AVX512-VNNI, NCHW 1x64x56x56:

    Conv 3x3, result unrounded   float on constant weights 49 (16@32), 2150 (64@56), 400 (128@14)
                         ConvInteger, rescaled: 63, 1990, 360
    MaxPool 2x2          float 51    uint8 692    Cast, float, Cast 104
    MaxPool 2x2 between two QLinearConv           uint8 839 in all, with Casts 1023
    AveragePool 3x3      float 47    QLinearAveragePool 354 (866 on a busy machine)
                         Cast, Sub, float AveragePool, QuantizeLinear 134
                         depthwise QLinearConv with weights 1: 118; 2x2 stride 2: 37 against 112
    Softmax              float 129   QLinearSoftmax 345
                         Cast, Sub, Mul, float Softmax, QuantizeLinear: 0.45 of QLinearSoftmax
    ReduceMax, last axis, 512x508    DequantizeLinear, float 124     uint8, DequantizeLinear 32
    GlobalMaxPool 64@28  DequantizeLinear, float 17      uint8 ReduceMax, DequantizeLinear 7
    GlobalAveragePool    float 32    QLinearGlobalAveragePool 18
    ReduceMean, ReduceSum, last axis    float 47    int32 ReduceSum, rescaled 246
    CumSum               float 83    int32 CumSum, rescaled 450
    Resize x2, linear    float 1290  two integer MatMul 11900; cubic: float 56800
    CenterCropPad        float 147   int32 171;  Trilu: float 63, int64 147
    Add                  float 37    QLinearAdd 23
    Mul                  float 38    QLinearMul 33
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxfold.passes.errors import UsageError

LARGEST_INTEGER_SOFTMAX = 1024
"""Elements up to which QLinearSoftmax is faster than five float nodes: 7 us against 10 at 10
elements, 7.4 against 8.8 at 512, 16.5 against 10 at 4096."""

FLOAT_ONLY = frozenset({"SpaceToDepth"})
"""Ops that onnxruntime 1.23, the oldest supported, computes on no 8-bit integers."""

FASTER_IN_FLOAT = "its integer kernel is slower than the float one (measured)"
"""The remark on ops that are computed in float between codes for speed alone."""

NOT_IN_OLDEST = "onnxruntime 1.23 has no integer kernel for it"
"""The remark on ops that are computed in float between codes to run everywhere."""

_BLOCK = 16
"""Channels that kernels take together: in float, fewer cost as much; in integers, they are slow."""

_WORD = 8
"""Codes are copied by so many bytes; the rest of a row of the kernel, channels-last, is slow."""

_KIND = "onnxfold costs"

Features = Mapping[str, float]
"""How often each cost of a family arises."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "integer convolution": ("constant", "rows", "ragged rows", "outputs", "products"),
    "float convolution": ("constant", "blocked outputs", "blocked products"),
    "integer depthwise convolution": ("constant", "taps", "products", "unaligned products"),
    "float depthwise convolution": ("constant", "blocked outputs", "blocked products"),
    "integer max pool": ("constant", "taps", "products"),
    "float max pool": ("constant", "blocked products"),
    "codes to float": ("constant", "elements"),
    "float to codes": ("constant", "elements"),
    "rounding": ("constant", "elements"),
    "change of layout": ("constant", "elements"),
}
"""The families of kernels, and the features their costs are sums over.

``codes to float`` is Cast and Sub; ``float to codes`` QuantizeLinear and the change of layout;
``rounding`` Clip and Round between two float kernels, with the changes of layout around them;
``change of layout`` a Transpose of codes to channels-last.
"""


@dataclass(frozen=True)
class CostTable:
    """Measured costs.

    Attributes:
        machine: Where they were measured, in words.
        onnxruntime: The version that was measured.
        microseconds: Of each feature of each family, on one thread.
    """

    machine: str
    onnxruntime: str
    microseconds: Mapping[str, Mapping[str, float]]

    def cost(self, family: str, features: Features) -> float:
        """Microseconds of one kernel."""
        units = self.microseconds[family]
        return sum(units[name] * features[name] for name in FAMILIES[family])

    def to_json(self) -> dict[str, Any]:
        """A plain dict, which ``read_costs`` reads."""
        units = {name: dict(costs) for name, costs in self.microseconds.items()}
        return {
            "kind": _KIND,
            "machine": self.machine,
            "onnxruntime": self.onnxruntime,
            "microseconds": units,
        }


def read_costs(text: str, name: str) -> CostTable:
    """The table that ``text`` holds as JSON.

    Args:
        text: What ``onnxfold tune`` wrote.
        name: What messages call it.

    Raises:
        UsageError: It is no table of costs, or lacks one.
    """
    try:
        data = json.loads(text)
        units = {
            family: {feature: float(data["microseconds"][family][feature]) for feature in features}
            for family, features in FAMILIES.items()
        }
        table = CostTable(str(data["machine"]), str(data["onnxruntime"]), units)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{name}: no table of costs ({error}); write one with tune") from error
    numbers = [number for costs in units.values() for number in costs.values()]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise UsageError(f"{name}: costs must be finite and not negative; measure them with tune")
    return table


def convolution_features(
    kernel: Sequence[int], inputs: int, outputs: int, group: int, pixels: int
) -> tuple[str, Features]:
    """Whether a convolution is depthwise, for its family's name, and its features.

    Args:
        kernel: Sizes of the kernel.
        inputs: Channels of the input that one output reads.
        outputs: Channels of the output.
        group: Number of groups.
        pixels: Positions of the output, the batch included.
    """
    taps = math.prod(kernel) * pixels
    # A kernel of one tap reads its input as it is; others copy it together, row by row.
    rows = 0 if math.prod(kernel) == 1 else math.prod(kernel[:-1]) * pixels
    blocked = -(-outputs // _BLOCK) * _BLOCK
    features = {
        "constant": 1.0,
        "taps": float(taps),
        "rows": float(rows),
        "ragged rows": float(rows if kernel[-1] * inputs % _WORD else 0),
        "outputs": float(pixels * outputs),
        "products": float(taps * inputs * outputs),
        "unaligned products": float(taps * inputs * (outputs % _BLOCK)),
        "blocked outputs": float(pixels * blocked),
        "blocked products": float(taps * inputs * blocked),
    }
    return "depthwise convolution" if group == outputs > 1 else "convolution", features


def pool_features(kernel: Sequence[int], channels: int, pixels: int) -> Features:
    """The features of a pool with ``pixels`` positions in the output, the batch included."""
    _, features = convolution_features(kernel, 1, channels, channels, pixels)
    return features


def element_features(elements: int) -> Features:
    """The features of what costs the same for each element."""
    return {"constant": 1.0, "elements": float(elements)}
