"""TorchScript: programs that keep no shapes, which the user has to name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request
from onnxfold.runtime.export.workers.torch_models import Leaf, TorchModel, export_model

NOTE = (
    "exported by torch's legacy exporter: the one of today does not take TorchScript; compared at "
    "its ends only, because that names no layers"
)


def export(request: Request, folder: Path) -> Answer:
    """Load the script, put it into evaluation mode, convert it, and run it."""
    torch: Any = importlib.import_module("torch")
    try:
        module = torch.jit.load(request.path, map_location="cpu")
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:300]
        raise FrontEndError(f"torch cannot load it: {words}", "unsupported") from error
    module.eval()
    arguments = [each for each in module.forward.schema.arguments if each.name != "self"]
    shapes: Mapping[str, str] = request.options.get("inputs", {})
    names = _taken([(each.name, str(each.type), each.has_default_value()) for each in arguments])
    _check(names, shapes)
    rng = np.random.default_rng(request.seed)
    leaves = [_leaf(torch, name, shapes[name], rng) for name in names]

    def call(values: Sequence[Any]) -> Any:
        return module(*values)

    model = TorchModel(
        call=call,
        leaves=leaves,
        program=None,
        module=module,
        arguments=(tuple(leaf.value for leaf in leaves), {}),
        notes=(NOTE,),
    )
    return export_model(model, request, folder)


def parse_input(text: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read ``1x3x224x224`` or ``int64:1x16``; float32 where no type is said.

    Raises:
        FrontEndError: It is neither.
    """
    kind, _, shape = text.rpartition(":")
    try:
        dims = tuple(int(each) for each in shape.split("x")) if shape else ()
        dtype = np.dtype(kind or "float32")
    except (TypeError, ValueError) as error:
        raise FrontEndError(
            f"'{text}' is no input: write its shape, as in 1x3x224x224 or int64:1x16", "usage"
        ) from error
    if any(dim < 1 for dim in dims):
        raise FrontEndError(f"'{text}' has a dimension that is not positive", "usage")
    return dtype, dims


def _taken(arguments: Sequence[tuple[str, str, bool]]) -> list[str]:
    """The arguments that tensors are given for: all but those with defaults.

    Raises:
        FrontEndError: One that has to be given is no tensor.
    """
    for name, kind, has_default in arguments:
        if kind != "Tensor" and not has_default:
            raise FrontEndError(
                f"argument '{name}' is a {kind}, and only tensors can be inputs: wrap the module "
                "in one that takes tensors"
            )
    return [name for name, kind, _ in arguments if kind == "Tensor"]


def _check(names: Sequence[str], shapes: Mapping[str, str]) -> None:
    unknown = [name for name in shapes if name not in names]
    if unknown:
        known = ", ".join(f"'{name}'" for name in names)
        raise FrontEndError(f"no input '{unknown[0]}'; it has {known}", "usage")
    missing = [name for name in names if name not in shapes]
    if missing:
        words = " ".join(f"--input {name}=1x3x224x224" for name in missing)
        raise FrontEndError(
            f"TorchScript keeps no shapes: name those of the inputs, for example {words}", "usage"
        )


def _leaf(torch: Any, name: str, text: str, rng: np.random.Generator) -> Leaf:
    dtype, dims = parse_input(text)
    is_float = dtype.kind == "f"
    array: Any = rng.standard_normal(dims) if is_float else rng.integers(2, size=dims)
    return Leaf(name, torch.from_numpy(np.asarray(array, dtype)), dims)
