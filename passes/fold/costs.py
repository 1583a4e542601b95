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

SLOW_UNROUNDED = "an integer kernel that does not round gains little or nothing here (measured)"
"""The end of the remark on convolutions whose result is read unrounded."""

NOT_IN_OLDEST = "onnxruntime 1.23 has no integer kernel for it"
"""The remark on ops that are computed in float between codes to run everywhere."""

CHANNELS_TOGETHER = 16
"""Channels that kernels take together: in float, fewer cost as much; in integers, they are slow."""

CHANNELS_READ = 4
"""Channels of the data that integer convolutions read together."""

_WORD = 8
"""Channels of which depthwise kernels still take several together."""

_KIND = "onnxfold costs"

Features = Mapping[str, float]
"""How often each cost of a family arises."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "integer convolution": ("constant", "pixels", "taps", "blocked outputs", "blocked products"),
    "integer ragged convolution": ("constant", "pixels", "rows", "outputs", "blocked products"),
    "float convolution": ("constant", "blocked outputs", "blocked products"),
    "integer depthwise convolution": ("constant", "taps", "products"),
    "integer ragged depthwise convolution": (
        "constant",
        "taps",
        "products",
        "unaligned products",
        "single products",
    ),
    "float depthwise convolution": ("constant", "blocked outputs", "blocked products"),
    "integer max pool": ("constant", "taps", "products"),
    "float max pool": ("constant", "blocked products"),
    "codes to float": ("constant", "elements"),
    "float to codes": ("constant", "elements"),
    "rounding": ("constant", "elements"),
    "change of layout": ("constant", "elements"),
}
"""The families of kernels, and the features their costs are sums over.

Integer convolutions read their data in place where channels come in fours and at least 16 are
computed; the ragged ones, others, copy it row by row and multiply matrices.
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


def whole_channels(channels: int) -> int:
    """``channels``, and those that are missing to what kernels take together."""
    return -(-channels // CHANNELS_TOGETHER) * CHANNELS_TOGETHER


def convolution_features(kernel: Sequence[int], inputs: int, outputs: int, pixels: int) -> Features:
    """The features of a convolution.

    Args:
        kernel: Sizes of the kernel.
        inputs: Channels of the input that one output reads.
        outputs: Channels of the output.
        pixels: Positions of the output, the batch included.
    """
    taps = math.prod(kernel) * pixels
    blocked = whole_channels(outputs)
    return {
        "constant": 1.0,
        "pixels": float(pixels),
        "taps": float(taps),
        # A kernel of one tap reads its input as it is; others copy it together, row by row.
        "rows": float(0 if math.prod(kernel) == 1 else math.prod(kernel[:-1]) * pixels),
        "outputs": float(pixels * outputs),
        "products": float(taps * inputs * outputs),
        "unaligned products": float(taps * inputs * (outputs % CHANNELS_TOGETHER)),
        "single products": float(taps * inputs * (outputs % _WORD)),
        "blocked outputs": float(pixels * blocked),
        "blocked products": float(taps * inputs * blocked),
    }


def integer_family(inputs: int, outputs: int, group: int) -> str:
    """The family of an integer convolution with ``group`` groups; see ``convolution_features``."""
    if group == outputs > 1 and outputs % CHANNELS_TOGETHER == 0:
        return "integer depthwise convolution"
    if group == outputs > 1:
        return "integer ragged depthwise convolution"
    if group > 1 or outputs < CHANNELS_TOGETHER or inputs % CHANNELS_READ:
        return "integer ragged convolution"
    return "integer convolution"


def float_family(outputs: int, group: int) -> str:
    """The family of a float convolution with ``group`` groups."""
    return "float depthwise convolution" if group == outputs > 1 else "float convolution"


def pool_features(kernel: Sequence[int], channels: int, pixels: int) -> Features:
    """The features of a pool with ``pixels`` positions in the output, the batch included."""
    return convolution_features(kernel, 1, channels, pixels)


def element_features(elements: int) -> Features:
    """The features of what costs the same for each element."""
    return {"constant": 1.0, "elements": float(elements)}
