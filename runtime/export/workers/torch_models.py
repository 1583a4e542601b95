"""A PyTorch model with its inputs laid flat: exports it, names its outputs, and runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import (
    FEEDS,
    Answer,
    Array,
    Feed,
    FrontEndError,
    Request,
    write_layers,
    write_samples,
)
from onnxfold.runtime.export.workers.samples import Port, samples
from onnxfold.runtime.export.workers.torch_layers import values_inside
from onnxfold.runtime.export.workers.torch_onnx import (
    Convertible,
    Unsupported,
    converted,
    layers_of,
    name_outputs,
    write,
)

_NUDGE = 1e-3
"""A quarter of a step at the largest of 256 codes: some values are rounded the other way."""
_PACKAGES = ("torch", "onnxscript", "onnx")


@dataclass(frozen=True)
class Leaf:
    """One value that the model takes, out of its nested arguments.

    Attributes:
        name: As the exporter will call it.
        value: An example: a tensor, or a number that stays what it is.
        shape: Of a tensor: numbers, and expressions in symbols where it is open. None for others.
    """

    name: str
    value: Any
    shape: tuple[Any, ...] | None


def _no_layer(_: Unsupported) -> str:
    return ""


@dataclass(frozen=True)
class TorchModel:
    """What there is to export.

    Attributes:
        call: Runs it on the values of all leaves.
        leaves: What it takes.
        program: As an ``ExportedProgram``, for torch's exporter of today; None if it is none.
        module: As a module, for the legacy exporter.
        arguments: Example arguments and named arguments, nested as the module takes them.
        notes: What the user should know.
        unsupported: Names the layer that uses an operator.
        is_quantized: Whether it rounds to codes inside, so that the order of sums may move values
            by whole steps.
    """

    call: Callable[[Sequence[Any]], Any]
    leaves: Sequence[Leaf]
    program: Any
    module: Any
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    unsupported: Callable[[Unsupported], str] = _no_layer
    is_quantized: bool = False


def export_model(model: TorchModel, request: Request, folder: Path) -> Answer:
    """Export ``model`` and run it on samples.

    Raises:
        FrontEndError: The exporters cannot convert it, or it does not run on the samples.
    """
    torch: Any = importlib.import_module("torch")
    tensors = [leaf for leaf in model.leaves if leaf.shape is not None]
    inputs = [leaf.name for leaf in tensors]
    feeds = _feeds(tensors, request, folder)
    found = [_run(torch, model, feed) for feed in feeds]
    outputs = list(request.outputs) or unlike(list(found[0]), inputs)
    found = [dict(zip(outputs, each.values(), strict=True)) for each in found]
    notes, layers = model.notes, dict[str, str]()
    if not request.runs_only:
        result = converted(torch, _convertible(model, tensors), request)
        name_outputs(result.model, outputs)
        layers, notes = layers_of(result.model), (*notes, *result.notes)
        write(result.model, folder)
    elif request.tensors:
        write_layers(folder, _inside(torch, model, request, feeds))
    others = _nudged(torch, model, feeds, outputs) if model.is_quantized else []
    write_samples(folder, feeds, found, others)
    return Answer(tuple(inputs), tuple(outputs), _versions(), layers, notes, len(feeds))


def _convertible(model: TorchModel, tensors: Sequence[Leaf]) -> Convertible:
    return Convertible(
        program=model.program,
        module=model.module,
        arguments=model.arguments,
        inputs=[leaf.name for leaf in tensors],
        tensors=tuple(leaf.value for leaf in tensors),
        call=lambda values: _call_with_tensors(model, values),
        layer=model.unsupported,
        axes=_open_axes(tensors),
    )


def _inside(torch: Any, model: TorchModel, request: Request, feeds: Sequence[Feed]) -> list[Feed]:
    """What the program computes inside; nothing where the legacy exporter took it."""
    tensors = [leaf for leaf in model.leaves if leaf.shape is not None]
    program = converted(torch, _convertible(model, tensors), request).program
    if program is None:
        return []
    return [values_inside(program, _values(torch, model, feed), request.tensors) for feed in feeds]


def unlike(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """``names``, with ``_out`` behind those that are taken."""
    return [f"{name}_out" if name in taken else name for name in names]


def readable(path: Sequence[Any]) -> str:
    """The name of an output by its place: ``logits``, ``maps_0``, ``output``, ``output_1``.

    Args:
        path: Keys of torch's pytree: of a dict, of a sequence, or of an attribute.
    """
    words: list[str] = []
    for key in path:
        part = next(getattr(key, field) for field in ("key", "idx", "name") if hasattr(key, field))
        words.append("".join(each if each.isalnum() else "_" for each in str(part)))
    if not words or words[0].isdecimal():
        words.insert(0, "output")
    return "_".join(words)


def _feeds(tensors: Sequence[Leaf], request: Request, folder: Path) -> list[Feed]:
    """The user's; else the example, random values of its shapes, and of other shapes."""
    ports = [_port(leaf) for leaf in tensors]
    feeds = samples(request, folder, ports)
    if (folder / FEEDS).is_file():
        return feeds
    example = {leaf.name: _array(leaf.value, leaf.name) for leaf in tensors}
    sizes = other_sizes([(leaf.shape or (), leaf.value.shape) for leaf in tensors])
    if sizes is None:
        return [example, *feeds[1:]]
    rng = np.random.default_rng(request.seed + 1)
    others = [
        replace(port, shape=shape).draw(rng) for port, shape in zip(ports, sizes, strict=True)
    ]
    return [example, *feeds[1:], {leaf.name: x for leaf, x in zip(tensors, others, strict=True)}]


def other_sizes(
    shapes: Sequence[tuple[Sequence[Any], Sequence[int]]],
) -> list[tuple[int, ...]] | None:
    """Sizes for open dimensions, one larger than in the example.

    Args:
        shapes: Of each input, numbers and symbols or expressions in them, and the example's sizes.

    Returns:
        None if no dimension is open, or an expression has symbols that no dimension shows alone.
    """
    values: dict[Any, int] = {}
    for shape, example in shapes:
        for dim, size in zip(shape, example, strict=True):
            if not isinstance(dim, int) and getattr(dim, "is_Symbol", False):
                values[dim] = int(size) + 1
    found: list[tuple[int, ...]] = []
    for shape, _ in shapes:
        dims = [dim if isinstance(dim, int) else dim.subs(values) for dim in shape]
        if not all(isinstance(dim, int) or getattr(dim, "is_Integer", False) for dim in dims):
            return None
        found.append(tuple(int(dim) for dim in dims))
    return found if values else None


def _open_axes(tensors: Sequence[Leaf]) -> dict[str, dict[int, str]]:
    found = {
        leaf.name: {
            axis: f"{leaf.name}_{axis}" if axis else "batch"
            for axis, dim in enumerate(leaf.shape if leaf.shape is not None else [])
            if not isinstance(dim, int)
        }
        for leaf in tensors
    }
    return {name: axes for name, axes in found.items() if axes}


def _call_with_tensors(model: TorchModel, values: Sequence[Any]) -> Any:
    """Run ``model`` on the tensors among its leaves; the other leaves stay."""
    given = iter(values)
    return model.call([
        leaf.value if leaf.shape is None else next(given) for leaf in model.leaves
    ])  # fmt: skip


def _values(torch: Any, model: TorchModel, feed: Feed) -> list[Any]:
    """The values of all leaves: tensors are fed, other leaves stay."""
    return [
        leaf.value if leaf.shape is None else torch.from_numpy(np.array(feed[leaf.name]))
        for leaf in model.leaves
    ]


def _run(torch: Any, model: TorchModel, feed: Feed) -> Feed:
    try:
        found = model.call(_values(torch, model, feed))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        words = " ".join(str(error).split())[:300]
        raise FrontEndError(f"it does not run on the samples: {words}", "usage") from error
    outputs: Feed = {}
    for path, value in torch.utils._pytree.tree_flatten_with_path(found)[0]:
        if value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise FrontEndError(
                f"output '{readable(path)}' is a {type(value).__name__}, not a tensor: wrap the "
                "module in one that returns tensors"
            )
        outputs[readable(path)] = _array(value, readable(path))
    if not outputs:
        raise FrontEndError("it returns no tensor")
    return outputs


def _nudged(
    torch: Any, model: TorchModel, feeds: Sequence[Feed], outputs: Sequence[str]
) -> list[Feed]:
    """What it computes of inputs that are a little larger, so that other values are rounded up."""
    found: list[Feed] = []
    for feed in feeds:
        moved = {
            name: (x * (1 + _NUDGE)).astype(x.dtype) if x.dtype.kind == "f" else x
            for name, x in feed.items()
        }
        found.append(dict(zip(outputs, _run(torch, model, moved).values(), strict=True)))
    return found


def _port(leaf: Leaf) -> Port:
    array = _array(leaf.value, leaf.name)
    return Port(leaf.name, array.dtype, tuple(array.shape))


def _array(tensor: Any, name: str) -> Array:
    try:
        return np.array(tensor.detach().cpu().numpy())
    except (TypeError, RuntimeError) as error:
        raise FrontEndError(
            f"tensor '{name}' is {tensor.dtype}, which numpy does not have: convert the module "
            "to float32 or float16",
            "unsupported",
        ) from error


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            continue
    return found
