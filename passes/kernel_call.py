"""What a kernel is called with: one operator applied to constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.constants import Array

ArrayLike: TypeAlias = Array | np.generic


class NotFoldableError(Exception):
    """This operator, on these values, is not computed at compile time."""


@dataclass(frozen=True)
class Call:
    """One operator applied to constants.

    Attributes:
        op_type: The operator.
        opset: Version of ai.onnx it is read under.
        inputs: One array per input; None where an optional input is absent.
        attributes: The node's attributes.
        outputs: Number of outputs wanted.
        max_bytes: Largest result allowed.
    """

    op_type: str
    opset: int
    inputs: Sequence[Array | None]
    attributes: Mapping[str, ir.Attr]
    outputs: int
    max_bytes: int

    def optional(self, index: int) -> Array | None:
        """Input ``index``; None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> Array:
        """Input ``index``.

        Raises:
            NotFoldableError: It is absent.
        """
        array = self.optional(index)
        if array is None:
            raise NotFoldableError
        return array

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or ``default``."""
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.value

    def ints(self, name: str, index: int) -> list[int] | None:
        """Integers given as the attribute ``name`` (older opsets) or as input ``index``."""
        attribute = self.attributes.get(name)
        if attribute is not None:
            return list(attribute.as_ints())
        array = self.optional(index)
        return None if array is None else [int(each) for each in array.reshape(-1)]

    def reserve(self, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        """Ask to make an array of ``shape`` before making it.

        Raises:
            NotFoldableError: It would be larger than allowed.
        """
        if math.prod(shape) * np.dtype(dtype).itemsize > self.max_bytes:
            raise NotFoldableError


Kernel: TypeAlias = Callable[[Call], "ArrayLike | tuple[ArrayLike, ...]"]


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that arrays of these shapes have together."""
    return np.broadcast_shapes(*(tuple(shape) for shape in shapes))
