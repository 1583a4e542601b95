"""move-transposes: transposes go where they cancel, or where they move less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxfold.passes.base import Contract
from onnxfold.passes.layouts.carry import Handler
from onnxfold.passes.layouts.operators import EXACT
from onnxfold.passes.layouts.rules import TransposeMover


@dataclass(frozen=True)
class MoveTransposes(TransposeMover):
    """Move transposes past operators to where they cancel, or where they move fewer bytes.

    Exporters of channels-last frameworks leave transposes around every operator that ONNX has in
    channels first only. Around each Transpose, all operators that can compute in another layout
    are considered at once, and the cheapest choice is taken: elementwise operators with what they
    broadcast, Q/DQ (the axis of the scales moves along), Concat, Split, Slice, Pad, Gather, Expand,
    Tile, Squeeze, Unsqueeze, nearest-neighbour Resize, and Reshape where it keeps together what it
    joins. What may be fused with a linear operator goes ahead of a Transpose between them. There
    are never more transposes than before; inputs and outputs stay as they are.
    """

    name: ClassVar[str] = "move-transposes"
    contract: ClassVar[Contract] = Contract.EXACT

    def handlers(self) -> dict[str, Handler]:
        """What computes the same bits in every layout."""
        return EXACT
