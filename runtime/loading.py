"""Reading and writing models safely: what comes in is checked, what goes out is all or nothing."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx.checker
import onnx.defs
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxfold.passes.collector import paused_collector
from onnxfold.passes.errors import InvalidModelError, OnnxfoldError, UsageError
from onnxfold.passes.serialization import all_tensors, write_model
from onnxfold.passes.walk import all_graphs
from onnxfold.runtime.densify import densify
from onnxfold.runtime.external_data import check_tensors
from onnxfold.runtime.node_names import separate_names
from onnxfold.runtime.node_order import sort_nodes
from onnxfold.runtime.places import check_kind
from onnxfold.runtime.specs import ModelLike, describe_model, one_line

_OVERRIDABLE_SINCE = 4  # IR version from which a caller may override an initializer
_MAX_NESTING = 16


def load_model(model: ModelLike) -> ir.Model:
    """A checked in-memory model of its own: what it was made from is never modified.

    External data is only accepted inside the model's folder (see ``external_data``) and is mapped,
    not read. Nodes are put in order and get names of their own, and sparse constants become dense.
    Inputs of old models (IR < 4) that only repeat initializers are dropped, as ONNX Runtime does.

    Raises:
        InvalidModelError: The file is missing, truncated, not an ONNX model, rejected by
            onnx's checker, hostile, or holds what onnxfold cannot represent.
    """
    label = describe_model(model)
    if isinstance(model, ir.Model):
        with paused_collector():
            return model.clone()
    if isinstance(model, onnx.ModelProto):
        proto, folder, path = onnx.ModelProto(), None, None
        proto.CopyFrom(model)
    elif isinstance(model, bytes):
        proto, folder, path = _parse(model, label), None, None
    else:
        path = Path(model)
        proto, folder = _parse(_read(path), label), path.resolve().parent
    _check_shape(proto, label)
    external = check_tensors(proto, folder, label)
    sort_nodes(proto)
    separate_names(proto)
    _check_onnx(proto, path if external else None, label)
    densify(proto, folder, label)
    if proto.ir_version < _OVERRIDABLE_SINCE:
        _drop_constant_inputs(proto)
    return _to_ir(proto, folder, label)


def save_model(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write ``model`` to ``path``: the whole file or nothing, never through a link.

    Tensors of more than 1.5 GiB together go into ``<path>.data``. The IR version is at most 13, and
    no newer than the model's own unless its contents need it.

    Raises:
        UsageError: The place cannot be written.
    """
    target = Path(path)
    check_kind(target)
    try:
        # Names of external data are those of the final files: so a folder, not a temporary name.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            for name in write_model(model, Path(folder), target.name):
                os.replace(Path(folder) / name, target.parent / name)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}; choose another place") from None


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InvalidModelError(f"{path}: a folder, not an ONNX model")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelError(f"{path}: not a regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidModelError(f"{path} cannot be read: {reason}") from None


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    if not data:
        raise InvalidModelError(f"{label}: the file is empty")
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise InvalidModelError(f"{label}: not an ONNX model, or truncated") from None
    if not proto.HasField("graph") or not proto.ir_version:
        raise InvalidModelError(f"{label}: not an ONNX model: it has no graph")
    return proto


def _check_shape(proto: onnx.ModelProto, label: str) -> None:
    """Refuse what the in-memory form cannot hold."""
    if proto.training_info:
        raise InvalidModelError(
            f"{label}: holds training_info, which onnxfold would lose; remove it first"
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise InvalidModelError(
                f"{label}: opset {entry.version} is newer than the newest known, {newest}; export "
                "the model with an older one"
            )
    if not proto.graph.output:
        raise InvalidModelError(f"{label}: the graph has no outputs: there is nothing to compute")
    for value in (*proto.graph.input, *proto.graph.output):
        if _holds_map(value.type):
            raise InvalidModelError(
                f"{label}: '{value.name}' is a map, which onnxfold does not support; export the "
                "classifier without ZipMap (zipmap=False)"
            )
    nodes = [node for function in proto.functions for node in function.node]
    _check_nesting([*proto.graph.node, *nodes], 0, label)


def _holds_map(type_proto: onnx.TypeProto) -> bool:
    while type_proto.HasField("sequence_type"):
        type_proto = type_proto.sequence_type.elem_type
    return type_proto.HasField("map_type")


def _check_nesting(nodes: list[onnx.NodeProto], depth: int, label: str) -> None:
    if depth > _MAX_NESTING:
        raise InvalidModelError(f"{label}: bodies are nested more than {_MAX_NESTING} deep")
    for node in nodes:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    _check_nesting(list(body.node), depth + 1, label)


def _check_onnx(proto: onnx.ModelProto, path: Path | None, label: str) -> None:
    """Run onnx's checker, on the file where external data has to be found beside it."""
    # The checker wants a shape, of whatever rank, for outputs whose rank nobody knows beforehand.
    tensors = [each.type.tensor_type for each in proto.graph.output if _is_tensor(each)]
    lacking = [each for each in tensors if not each.HasField("shape")]
    for each in lacking:
        each.shape.SetInParent()
    try:
        onnx.checker.check_model(str(path) if path is not None else proto)
    except OnnxfoldError:
        raise
    except Exception as error:
        raise InvalidModelError(f"{label}: invalid: {one_line(error)}") from error
    finally:
        for each in lacking:
            each.ClearField("shape")


def _is_tensor(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type")


def _drop_constant_inputs(proto: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.ir_version = _OVERRIDABLE_SINCE


def _to_ir(proto: onnx.ModelProto, folder: Path | None, label: str) -> ir.Model:
    try:
        with _quiet(), paused_collector():
            model = ir.from_proto(proto)
    except Exception as error:
        raise InvalidModelError(f"{label}: not supported: {one_line(error)[:300]}") from error
    for tensor in all_tensors(model):
        if folder is not None and isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
    _forget_negative_dimensions(model)
    return model


def _forget_negative_dimensions(model: ir.Model) -> None:
    """Some exporters write -1 for a dimension that is not known: say so instead."""
    for graph in all_graphs(model):
        values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
        for value in values:
            dims = tuple(value.shape or ())
            if any(isinstance(dim, int) and dim < 0 for dim in dims):
                known = [None if isinstance(dim, int) and dim < 0 else dim for dim in dims]
                value.shape = ir.Shape(known)


@contextmanager
def _quiet() -> Generator[None]:
    """Errors arrive as exceptions; onnx_ir also logs them."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
