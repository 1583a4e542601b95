"""torch's two exporters: today's first, the legacy one where that fails; and what they leave."""

from __future__ import annotations

import ast
import importlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from onnxfold.runtime.export.workers.protocol import MODEL, FrontEndError, Request
from onnxfold.runtime.export.workers.tf2onnx_models import rename_tensors

_OLDEST_OF_TODAY = 18
_NEWEST_OF_LEGACY = 20
_IR_VERSION = 10
_LARGEST_FILE = 1_800_000_000
_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_ENDS = "; compared at its ends only"
_NO_FUNCTION = re.compile(r"OpOverload\(op='([^']+)'(?:, overload='([^']*)')?\)")
_NO_SYMBOLIC = re.compile(r"operator '?([\w.]+::[\w.]+)'?")


@dataclass(frozen=True)
class Unsupported:
    """An operator without a counterpart.

    Attributes:
        operator: As torch writes it: ``aten.foo``.
    """

    operator: str


@dataclass(frozen=True)
class Convertible:
    """What the exporters are given.

    Attributes:
        program: An ``ExportedProgram``, which today's exporter takes; None if there is none.
        module: A module, which the legacy one takes.
        arguments: Example arguments and named arguments.
        inputs: Names of the tensors among them.
        tensors: The tensors among the example arguments, one after the other.
        call: Runs the model on such tensors.
        layer: Names the layer that uses an operator.
        axes: Open dimensions of inputs, by axis, with names.
    """

    program: Any
    module: Any
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    inputs: Sequence[str]
    tensors: tuple[Any, ...]
    call: Callable[[Sequence[Any]], Any]
    layer: Callable[[Unsupported], str]
    axes: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Converted:
    """An ``onnx.ModelProto``, and which exporter wrote it and why.

    Attributes:
        model: What was written.
        notes: Which exporter wrote it, where it was not today's.
        program: What today's exporter translated, node for node; None where it was the other.
    """

    model: Any
    notes: tuple[str, ...]
    program: Any = None


def converted(torch: Any, source: Convertible, request: Request) -> Converted:
    """Convert by today's exporter, or by the legacy one where it has to be.

    Raises:
        FrontEndError: Neither can.
    """
    opset = request.opset
    if source.program is None:
        return Converted(_legacy(torch, source, request), ())
    if opset < _OLDEST_OF_TODAY:
        note = (
            f"exported by torch's legacy exporter: today's writes opset {_OLDEST_OF_TODAY} at least"
            f"{_ENDS}"
        )
        return Converted(_legacy(torch, source, request), (note,))
    try:
        made = torch.onnx.export(source.program, dynamo=True, opset_version=opset, verbose=False)
        return Converted(made.model_proto, (), made.exported_program)
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - exporters raise what they like
        why = _why(error, source)
        try:
            model = _legacy(torch, source, request)
        except FrontEndError:
            raise FrontEndError(f"torch cannot convert it: {why}", "unsupported") from error
        note = f"exported by torch's legacy exporter: today's failed ({why}){_ENDS}"
        return Converted(model, (note,))


def _legacy(torch: Any, source: Convertible, request: Request) -> Any:
    onnx: Any = importlib.import_module("onnx")
    args, kwargs = source.arguments[0], dict(source.arguments[1])
    axes = {name: dict(names) for name, names in source.axes.items()}
    if source.program is None and request.options.get("dynamic_batch"):
        axes = {name: {0: "batch"} for name in source.inputs}
    content = io.BytesIO()
    module = source.module
    if source.program is not None:
        module, args, kwargs = _flat(torch, source), source.tensors, dict[str, Any]()
    try:
        torch.onnx.export(
            module,
            args,
            content,
            kwargs=kwargs or None,
            dynamo=False,
            input_names=list(source.inputs),
            dynamic_axes=axes or None,
            opset_version=min(request.opset, _NEWEST_OF_LEGACY),
        )
    except ImportError:
        raise
    except Exception as error:
        raise FrontEndError(
            f"torch cannot convert it: {_why(error, source)}", "unsupported"
        ) from error
    return onnx.load_from_string(content.getvalue())


def _flat(torch: Any, source: Convertible) -> Any:
    """A module that takes the tensors one after the other, whatever the program is nested in."""

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = source.module

        def train(self, mode: bool = True) -> Any:
            # Exported programs have no modes, and refuse to be asked for one.
            return self

        def forward(self, *tensors: Any) -> Any:
            return source.call(tensors)

    return Flat()


def name_outputs(model: Any, names: Sequence[str]) -> None:
    """Give the outputs their names; one that is an input, or twice there, gets an Identity.

    Raises:
        FrontEndError: The exporter kept another number of outputs.
    """
    onnx: Any = importlib.import_module("onnx")
    graph = model.graph
    if len(graph.output) != len(names):
        raise FrontEndError(
            f"torch's exporter wrote {len(graph.output)} outputs where the module has {len(names)}"
        )
    made = {name for node in graph.node for name in node.output}
    wanted: dict[str, str] = {}
    for output, name in zip(graph.output, names, strict=True):
        if output.name in made and output.name not in wanted:
            wanted[output.name] = name
            continue
        graph.node.append(onnx.helper.make_node("Identity", [output.name], [f"{name}.copy"]))
        output.name = f"{name}.copy"
        wanted[output.name] = name
    rename_tensors(model, wanted)


def layers_of(model: Any) -> dict[str, str]:
    """Tensors to the paths of the modules that compute them, from the exporter's notes.

    All such notes are taken out of the model: they hold paths of the machine that exported.
    """
    found: dict[str, str] = {}
    for node in model.graph.node:
        notes = {each.key: each.value for each in node.metadata_props}
        layer = innermost(notes.get(_SCOPES, ""), notes.get(_CLASSES, ""))
        if layer:
            found |= {name: layer for name in node.output if name}
        del node.metadata_props[:]
        node.doc_string = ""
    for each in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del each.metadata_props[:]
    for each in model.graph.initializer:
        del each.metadata_props[:]
    del model.graph.metadata_props[:]
    return found


def innermost(scopes: str, classes: str = "") -> str:
    """The module that an operator is in: ``encoder.linear1 (Linear)``; empty if it is the whole.

    Args:
        scopes: A list of scopes, written as Python: the last is the operator's own.
        classes: Their classes, likewise.
    """
    names, kinds = _listed(scopes)[:-1], _listed(classes)
    place = next((index for index in range(len(names) - 1, -1, -1) if names[index]), None)
    if place is None:
        return ""
    kind = f" ({kinds[place].rpartition('.')[2]})" if len(kinds) == len(names) + 1 else ""
    return f"{names[place]}{kind}"


def _listed(text: str) -> list[str]:
    try:
        found: object = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return []
    return [str(each) for each in cast("list[object]", found)] if isinstance(found, list) else []


def write(model: Any, folder: Path) -> None:
    """Write the model, with its weights beside it where they are too large for one file.

    Raises:
        FrontEndError: The exporter left operators in it that ONNX does not have.
    """
    onnx: Any = importlib.import_module("onnx")
    foreign = sorted({
        f"{node.domain}.{node.op_type}"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx")
    })  # fmt: skip
    if foreign and not model.functions:
        raise FrontEndError(f"ONNX has no operator for {', '.join(foreign)}", "unsupported")
    model.ir_version = min(model.ir_version, _IR_VERSION)
    path = folder / MODEL
    is_large = model.ByteSize() > _LARGEST_FILE
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=is_large,
        location=f"{MODEL}.data" if is_large else None,
    )
    onnx.checker.check_model(str(path))


def _why(error: BaseException, source: Convertible) -> str:
    """The first cause in one line; operators with the layers that use them."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    texts = [" ".join(str(each).split()) for each in chain]
    for text in texts[::-1]:
        operator = operator_in(text)
        if operator:
            layer = source.layer(Unsupported(operator))
            where = f" (layer '{layer}')" if layer else ""
            return f"ONNX has no operator for {operator}{where}"
    root = texts[-1] or type(chain[-1]).__name__
    return f"{type(chain[-1]).__name__}: {root[:250]}"


def operator_in(text: str) -> str:
    """The operator that an exporter complains of, as ``domain.name``; empty if of none."""
    found = _NO_FUNCTION.search(text)
    if found:
        return found[1]
    legacy = _NO_SYMBOLIC.search(text)
    return legacy[1].replace("::", ".") if legacy else ""
