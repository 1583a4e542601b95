"""Where a model's external tensors lie, checked before any library opens them.

Only regular files inside the model's own folder are read: no absolute paths, no ``..``, no
symbolic links, no hard links (libraries check less: ONNX Runtime reads hard links).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from onnxfold.passes.errors import InvalidModelError

_MAX_ELEMENTS = 1 << 40


def check_tensors(model: onnx.ModelProto, folder: Path | None, label: str) -> bool:
    """Check size and location of every tensor: dense and sparse, in bodies and functions.

    Args:
        model: The model.
        folder: The model's folder; None where it is not known.
        label: Name of the model for messages.

    Returns:
        Whether there is any external tensor.

    Raises:
        InvalidModelError: A tensor's size is wrong or its place not allowed; names the tensor.
    """
    external = False
    for tensor in all_tensor_protos(model):
        name = f"{label}: tensor '{tensor.name}'"
        size = _declared_bytes(tensor, name)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            _check_inline(tensor, size, name)
            continue
        external = True
        if folder is None:
            raise InvalidModelError(
                f"{name} is external data of an unknown folder; pass the path of the model"
            )
        _check_external(tensor, size, folder, name)
    return external


def all_tensor_protos(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model, wherever it is held."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [*attribute.sparse_tensors]
    if attribute.HasField("sparse_tensor"):
        sparse.append(attribute.sparse_tensor)
    for each in sparse:
        yield from (each.values, each.indices)
    if attribute.HasField("g"):
        yield from _graph_tensors(attribute.g)
    for graph in attribute.graphs:
        yield from _graph_tensors(graph)


def _declared_bytes(tensor: onnx.TensorProto, name: str) -> int | None:
    """Size of the raw data in bytes; None for strings, which have no fixed size."""
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise InvalidModelError(f"{name} has a negative dimension")
        count *= dim
    if count > _MAX_ELEMENTS:
        raise InvalidModelError(f"{name} declares {count} elements")
    try:
        data_type = ir.DataType(tensor.data_type)
    except ValueError:
        raise InvalidModelError(f"{name} is of unknown type {tensor.data_type}") from None
    if data_type == ir.DataType.STRING:
        return None
    if data_type == ir.DataType.UNDEFINED:
        raise InvalidModelError(f"{name} has no type")
    return -(-count * data_type.bitwidth // 8)


def _check_inline(tensor: onnx.TensorProto, size: int | None, name: str) -> None:
    if tensor.HasField("raw_data") and size is not None and len(tensor.raw_data) != size:
        raise InvalidModelError(f"{name} holds {len(tensor.raw_data)} bytes instead of {size}")


def _check_external(tensor: onnx.TensorProto, size: int | None, folder: Path, name: str) -> None:
    if size is None:
        raise InvalidModelError(f"{name}: strings cannot be external data")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _resolve(entries.get("location", ""), folder, name)
    offset, length = _number(entries, "offset", 0, name), _number(entries, "length", size, name)
    if length != size:
        raise InvalidModelError(f"{name} declares {length} bytes of external data for {size}")
    available = path.stat().st_size
    if offset + length > available:
        raise InvalidModelError(
            f"{name} ends at byte {offset + length} of {path.name}, which has {available}"
        )


def _resolve(location: str, folder: Path, name: str) -> Path:
    parts = PurePosixPath(location).parts
    absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    if not parts or absolute or ".." in parts or "\\" in location or "\0" in location:
        raise InvalidModelError(
            f"{name} lies at {location!r}: external data must be inside the model's folder"
        )
    path = folder
    for part in parts:
        path = path / part
        status = _status(path, name)
        if stat.S_ISLNK(status.st_mode):
            raise InvalidModelError(f"{name}: its external data {location!r} is a symbolic link")
    status = _status(path, name)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModelError(f"{name}: its external data {location!r} is not a regular file")
    if status.st_nlink != 1:
        raise InvalidModelError(
            f"{name}: its external data {location!r} has {status.st_nlink} hard links; copy the "
            "file, another name of it may lie outside the model's folder"
        )
    return path


def _status(path: Path, name: str) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise InvalidModelError(f"{name}: external data {path}: {reason}") from None


def _number(entries: dict[str, str], key: str, default: int, name: str) -> int:
    text = entries.get(key, str(default))
    if not text.isascii() or not text.isdigit():
        raise InvalidModelError(f"{name}: {key} of its external data is {text!r}")
    return int(text)
