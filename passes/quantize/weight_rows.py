"""The weights of a linear operator as rows, each multiplied by one vector of inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array


@dataclass(frozen=True)
class WeightRows:
    """How stored weights lie as [groups, outputs of a group, inputs of an output].

    Attributes:
        stored: Their shape in the model.
        groups: 1 but for grouped convolutions.
        inputs_first: Whether they are stored as [inputs, outputs] (MatMul, Gemm).
    """

    stored: tuple[int, ...]
    groups: int = 1
    inputs_first: bool = False

    @classmethod
    def match(cls, node: ir.Node, stored: tuple[int, ...]) -> WeightRows | None:
        """Describe weights of shape ``stored`` at input 1 of Conv, Gemm or MatMul; None elsewhere.

        A convolution multiplies its row by a patch of the data, channels before taps.
        """
        if node.domain:
            return None
        match node.op_type:
            case "Conv" if len(stored) > 2:
                groups = node.attributes.get_int("group", 1)
                return None if groups < 1 or stored[0] % groups else cls(stored, groups)
            case "Gemm" if len(stored) == 2:
                return cls(stored, inputs_first=not node.attributes.get_int("transB", 0))
            case "MatMul" if len(stored) == 2:
                return cls(stored, inputs_first=True)
            case _:
                return None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, outputs of a group, inputs of an output)."""
        if self.inputs_first:
            return 1, self.stored[1], self.stored[0]
        return self.groups, self.stored[0] // self.groups, math.prod(self.stored[1:])

    def to_rows(self, stored: Array) -> Array:
        """Stored weights, or anything of their shape, as ``shape``."""
        rows: Array = np.swapaxes(stored, 0, 1) if self.inputs_first else stored
        return rows.reshape(self.shape)

    def from_rows(self, rows: Array) -> Array:
        """The inverse of ``to_rows``; broadcasts first, so one row can stand for all."""
        full: Array = np.broadcast_to(rows, self.shape)
        if self.inputs_first:
            return np.ascontiguousarray(full[0].T)
        return full.reshape(self.stored)
