"""What a model's inputs and outputs look like: names, element types and shapes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import InvalidModelError

Feed: TypeAlias = dict[str, Array]
ModelLike: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model

_NAMES_OF_ORT = {"float": ir.DataType.FLOAT, "double": ir.DataType.DOUBLE}


@dataclass(frozen=True)
class TensorSpec:
    """The declared type of one model input or output.

    Attributes:
        name: Its name in the model.
        dtype: The numpy dtype (``ml_dtypes`` where numpy has none, ``object`` for strings), or
            the type as text where the value is not a dense tensor (``seq(map(...))``).
        shape: One entry per dimension: a size, the name of a symbolic dimension, or None.
            None as a whole where the rank is not known.
    """

    name: str
    dtype: np.dtype[Any] | str
    shape: tuple[int | str | None, ...] | None

    @property
    def is_tensor(self) -> bool:
        """Whether the value is a dense tensor."""
        return isinstance(self.dtype, np.dtype)

    def __str__(self) -> str:
        """``float32[N,3,224,224]``, for messages."""
        kind = dtype_name(self.dtype) if isinstance(self.dtype, np.dtype) else self.dtype
        if self.shape is None:
            return kind
        return f"{kind}[{','.join('?' if dim is None else str(dim) for dim in self.shape)}]"

    def to_json(self) -> dict[str, Any]:
        """A plain dict for reports."""
        kind = dtype_name(self.dtype) if isinstance(self.dtype, np.dtype) else self.dtype
        shape = None if self.shape is None else list(self.shape)
        return {"name": self.name, "dtype": kind, "shape": shape}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a dtype as users know it: strings are ``string``, not ``object``."""
    return "string" if dtype.kind in "OUS" else str(dtype)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype holds real floating-point numbers, those of ``ml_dtypes`` included."""
    return str(dtype).startswith(("float", "bfloat"))


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype holds integers, those of less than a byte included."""
    return str(dtype).startswith(("int", "uint"))


def onnx_type(dtype: np.dtype[Any]) -> ir.DataType:
    """The ONNX element type of a numpy dtype."""
    return ir.DataType.STRING if dtype.kind in "OUS" else ir.DataType.from_numpy(dtype)


def numpy_type(data_type: ir.DataType) -> np.dtype[Any]:
    """The numpy (or ``ml_dtypes``) dtype of an ONNX element type."""
    return np.dtype(object) if data_type == ir.DataType.STRING else data_type.numpy()


def parse_ort_type(text: str) -> np.dtype[Any] | str:
    """The dtype that ONNX Runtime writes as ``tensor(float16)``; other kinds stay text."""
    if not text.startswith("tensor("):
        return text
    name = text[len("tensor(") : -1]
    data_type = _NAMES_OF_ORT.get(name) or ir.DataType.__members__.get(name.upper())
    return text if data_type is None else numpy_type(data_type)


def load_ir(model: ModelLike) -> ir.Model:
    """``model`` as an ``ir.Model``; one that is one already is returned as it is.

    Raises:
        InvalidModelError: The file is missing, or is not an ONNX model.
    """
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return ir.from_proto(model)
    try:
        if isinstance(model, bytes):
            return ir.from_proto(onnx.ModelProto.FromString(model))
        return ir.load(Path(model))
    except FileNotFoundError:
        raise InvalidModelError(f"{describe_model(model)}: no such file") from None
    except Exception as error:
        message = f"{describe_model(model)}: not an ONNX model: {one_line(error)}"
        raise InvalidModelError(message) from error


def input_specs(model: ModelLike) -> tuple[TensorSpec, ...]:
    """The inputs a caller has to feed: graph inputs without the overridable initializers."""
    graph = load_ir(model).graph
    return specs_of([value for value in graph.inputs if value.name not in graph.initializers])


def describe_model(model: ModelLike) -> str:
    """A short name for messages: the path, or ``model 'graph name'``."""
    if isinstance(model, bytes):
        return "model (bytes)"
    if isinstance(model, onnx.ModelProto | ir.Model):
        return f"model '{model.graph.name or ''}'"
    return str(Path(model))


def one_line(error: BaseException | str) -> str:
    """An error's text squeezed to one line."""
    return " ".join(str(error).split()) or type(error).__name__


def specs_of(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """What inputs or outputs of a graph declare."""
    return tuple(_spec(value) for value in values)


def _spec(value: ir.Value) -> TensorSpec:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType):
        return TensorSpec(name, str(value.type), None)
    if value.shape is None:
        return TensorSpec(name, numpy_type(value.type.dtype), None)
    dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return TensorSpec(name, numpy_type(value.type.dtype), tuple(map(_known, dims)))


def _known(dim: int | str | None) -> int | str | None:
    """Some exporters write -1 for a dimension that is not known."""
    return None if isinstance(dim, int) and dim < 0 else dim
