"""A scheme: what types the activations and weights of an operator get, and what scales cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

WeightRanges: TypeAlias = Literal["max", "mse", "hessian"]
"""How a weight scale is chosen: so that nothing is clipped, by the least squared error, or by the
least squared error of what the weights make of data."""

Activations: TypeAlias = Literal["u8", "s8", "u16", "s16"]
"""Codes of activations, by name."""

Weights: TypeAlias = Literal["s8", "u8", "s4", "u4", "s16"]
"""Codes of weights, by name: signed ones are symmetric, unsigned ones have zero points."""

ACTIVATION_TYPES: dict[str, ir.DataType] = {
    "u8": ir.DataType.UINT8,
    "s8": ir.DataType.INT8,
    "u16": ir.DataType.UINT16,
    "s16": ir.DataType.INT16,
}
WEIGHT_TYPES: dict[str, ir.DataType] = {
    "s8": ir.DataType.INT8,
    "u8": ir.DataType.UINT8,
    "s4": ir.DataType.INT4,
    "u4": ir.DataType.UINT4,
    "s16": ir.DataType.INT16,
}
_OF_8_BITS = ("u8", "s8")


@dataclass(frozen=True)
class Scheme:
    """How one operator is quantized.

    Attributes:
        activations: Codes of what it reads and writes, one scale per tensor.
        weights: Codes of its constant second operand.
        per_channel: One weight scale per output channel instead of one per tensor.
        block: Weights along the input channels that share a scale; 0 for all of them.
        weight_ranges: How weight scales are chosen.
    """

    activations: Activations = "u8"
    weights: Weights = "s8"
    per_channel: bool = True
    block: int = 0
    weight_ranges: WeightRanges = "max"

    @property
    def activation_type(self) -> ir.DataType:
        """The type of its activations' codes."""
        return ACTIVATION_TYPES[self.activations]

    @property
    def weight_type(self) -> ir.DataType:
        """The type of its weights' codes."""
        return WEIGHT_TYPES[self.weights]

    @property
    def newer_types(self) -> str:
        """What of it came to ai.onnx with opset 21, in words; empty where nothing did."""
        if self.block:
            return "a scale a block"
        if self.activations not in _OF_8_BITS:
            return f"a type of activations like {self.activations}"
        return "" if self.weights in _OF_8_BITS else f"a type of weights like {self.weights}"
