"""What a target is: how codes are held, what it declines, and how it writes a lowering down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import Lowering, Refusal
from onnxfold.passes.fold.targets.builder import Builder

Write = Callable[[Lowering, Builder], Sequence[ir.Value]]
"""Writes a lowering down; returns what stands for each output of its node.

That is the codes of an output that has a type, and the output itself otherwise.
"""

Decline = Callable[[Lowering], Refusal | None]
"""Why the target would rather have the node in float; None where it takes the lowering."""

Shift = Callable[[ir.Value, AffineType, AffineType, ir.Value, Builder], ir.Value]
"""Codes of one 8-bit type as codes of the other that stands for the same numbers.

Takes the codes, their type, the other type, and the value they are named after.
"""


@dataclass(frozen=True)
class Target:
    """A kind of integer graph.

    Attributes:
        name: What the user calls it.
        recode: Whether int8 activations are held as uint8 (zero point + 128).
        write: Writes lowerings down.
        decline: Says which lowerings it does not take.
        shift: Converts between int8 and uint8 codes of the same numbers.
        dequantizes_weights: Whether linear ops that stay float get their weights ahead of time.
        accumulates: Whether an unrounded product is int32 codes for all that reads it.
        wide: Whether it computes with activations of 16 bits.
        keeps_names: Whether what replaces an operator takes over the names around it.
    """

    name: str
    recode: bool
    write: Write
    decline: Decline
    shift: Shift
    dequantizes_weights: bool = False
    accumulates: bool = False
    wide: bool = False
    keeps_names: bool = False


def shift_through_real(
    codes: ir.Value, old: AffineType, new: AffineType, like: ir.Value, build: Builder
) -> ir.Value:
    """The shift by 128 through real numbers: exact, as both scales are the same."""
    return build.quantize(build.dequantize(codes, old, like), new, like)
