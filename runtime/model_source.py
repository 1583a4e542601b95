"""Turns any form of model into something ONNX Runtime can open, weights included."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir

from onnxfold.passes.errors import ExecutionError, InvalidModelError, UsageError
from onnxfold.passes.walk import all_graphs
from onnxfold.runtime.specs import ModelLike, describe_model, load_ir, one_line

_PROTOBUF_LIMIT = (1 << 31) - 1
_IR_VERSION_TAG = 0x08  # field 1 of ModelProto, a varint


@dataclass(frozen=True)
class ModelSource:
    """What to hand to ONNX Runtime.

    Attributes:
        payload: A path, or the serialized model.
        folder: Where the external data of a serialized model lies; None if it has none.
    """

    payload: str | bytes
    folder: str | None = None


@contextmanager
def open_model(model: ModelLike, max_ir_version: int) -> Generator[ModelSource]:
    """Make ``model`` loadable; temporary files last as long as the ``with`` block.

    A model of a newer IR version than ``max_ir_version`` is presented as that version: the file
    or the object itself is not changed.

    Raises:
        InvalidModelError: The file is missing.
        UsageError: A ``ModelProto`` or bytes with external data, whose folder is not known.
    """
    if isinstance(model, bytes | onnx.ModelProto):
        yield from _open_proto(model, max_ir_version)
        return
    if isinstance(model, ir.Model):
        yield from _open_ir(model, max_ir_version)
        return
    path = Path(model)
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file")
    if _file_ir_version(path) <= max_ir_version:
        yield ModelSource(str(path))
        return
    yield ModelSource(_clamped(path.read_bytes(), max_ir_version), str(path.resolve().parent))


def _open_proto(model: bytes | onnx.ModelProto, max_ir_version: int) -> Iterator[ModelSource]:
    if isinstance(model, bytes):
        yield ModelSource(_clamped(model, max_ir_version))
        return
    external = next((t.name for t in model.graph.initializer if t.data_location), None)
    if external is not None:
        raise UsageError(
            f"{describe_model(model)}: initializer '{external}' is external data of an unknown "
            "folder; pass the path of the model, or an ir.Model"
        )
    if model.ByteSize() > _PROTOBUF_LIMIT:
        yield from _open_ir(load_ir(model), max_ir_version)
        return
    yield ModelSource(_clamped(model.SerializeToString(), max_ir_version))


def _open_ir(model: ir.Model, max_ir_version: int) -> Iterator[ModelSource]:
    tensors = [
        value.const_value for graph in all_graphs(model) for value in graph.initializers.values()
    ]
    in_memory = sum(
        tensor.nbytes
        for tensor in tensors
        if tensor is not None and not isinstance(tensor, ir.ExternalTensor)
    )
    folders = {
        os.path.abspath(cast(str, tensor.base_dir) or ".")
        for tensor in tensors
        if isinstance(tensor, ir.ExternalTensor)
    }
    # Leave room for nodes and names: only the sum of all weights is known without serializing.
    if len(folders) <= 1 and in_memory < _PROTOBUF_LIMIT * 3 // 4:
        try:
            data = ir.to_proto(model).SerializeToString()
        except Exception as error:
            message = f"{describe_model(model)} cannot be serialized: {one_line(error)}"
            raise ExecutionError(message) from error
        yield ModelSource(_clamped(data, max_ir_version), next(iter(folders), None))
        return
    with tempfile.TemporaryDirectory(prefix="onnxfold-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        data = _clamped(path.read_bytes(), max_ir_version)
        yield ModelSource(data, folder)


def _clamped(data: bytes, max_ir_version: int) -> bytes:
    """``data`` with an IR version ONNX Runtime accepts.

    Of a scalar field given twice, protobuf keeps the last: appending it replaces it without
    parsing the model.
    """
    if _ir_version(data, "model (bytes)") <= max_ir_version:
        return data
    return data + bytes((_IR_VERSION_TAG, max_ir_version))


def _file_ir_version(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(2)
    if head[:1] == bytes((_IR_VERSION_TAG,)):
        return _ir_version(head, str(path))
    return _ir_version(path.read_bytes(), str(path))


def _ir_version(data: bytes, label: str) -> int:
    # Serializers write fields in order, so that the version, one byte, is nearly always in front.
    if len(data) >= 2 and data[0] == _IR_VERSION_TAG and data[1] < 0x80:
        return data[1]
    try:
        return onnx.ModelProto.FromString(data).ir_version
    except Exception as error:
        raise InvalidModelError(f"{label}: not an ONNX model: {one_line(error)}") from error
