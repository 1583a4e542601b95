"""Turns Python and numpy data into the attributes and tensors of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

AttributeValue: TypeAlias = (
    int
    | float
    | str
    | Sequence[int]
    | Sequence[float]
    | Sequence[str]
    | ir.TensorProtocol
    | ir.Attr
)
"""What an attribute can be set to."""


def as_attribute(name: str, value: AttributeValue) -> ir.Attr:
    """``value`` as the attribute ``name``; an attribute is taken as it is."""
    if isinstance(value, ir.Attr):
        return value
    return ir.convenience.convert_attribute(name, value)


def as_tensor(data: npt.NDArray[Any] | ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """``data`` as a tensor called ``name``; the memory is shared."""
    # ir.tensor() tries every protocol first, which takes longer than all the rest.
    return (
        ir.Tensor(data, name=name) if isinstance(data, np.ndarray) else ir.tensor(data, name=name)
    )


def static_shape(tensor: ir.TensorProtocol) -> ir.Shape:
    """The shape of ``tensor``, as one of its own."""
    return ir.Shape(tensor.shape.numpy())
