"""Live objects of a framework, saved as files that the front ends read."""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from onnxfold.live_keras import PACKAGES, save_keras
from onnxfold.passes.errors import InvalidModelError, UsageError
from onnxfold.runtime.export.sources import Source

_ESTIMATORS = ("sklearn", "lightgbm", "xgboost")


@dataclass(frozen=True)
class Live:
    """A live object as a file.

    Attributes:
        source: The file.
        name: What the object is called in reports.
        options: What the front end has to be told.
        notes: What the user should know.
    """

    source: Source
    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()


def save_live(
    model: object,
    folder: Path,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    *,
    dynamic_batch: bool,
) -> Live:
    """Save ``model`` into ``folder``, as its framework would.

    Raises:
        UsageError: It is nothing that is known here, or lacks example inputs.
        InvalidModelError: Its framework cannot save it.
    """
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    name = f"live {type(model).__name__}"
    if packages & set(PACKAGES):
        return Live(save_keras(model, name, folder), name)
    if "torch" in packages:
        return _save_torch(cast("Any", model), name, folder, example_inputs, dynamic_batch)
    if packages & set(_ESTIMATORS):
        path = folder / "model.pkl"
        try:
            path.write_bytes(pickle.dumps(model))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InvalidModelError(f"{name} cannot be pickled: {error}") from error
        # The caller made it: there is nobody else to trust.
        return Live(Source(path, "pickle"), name, {"trust_pickle": True})
    raise UsageError(
        f"a {type(model).__name__} is nothing that is known here: give a path, a model of Keras, "
        "a module of torch, or an estimator of scikit-learn, LightGBM or XGBoost"
    )


def _save_torch(
    model: Any,
    name: str,
    folder: Path,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None,
    dynamic_batch: bool,
) -> Live:
    torch: Any = importlib.import_module("torch")
    program, script = folder / "model.pt2", folder / "model.pt"
    if isinstance(model, torch.export.ExportedProgram):
        torch.export.save(model, program)
        return Live(Source(program, "torch-export"), name)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"a {type(model).__name__} of torch is no module")
    if example_inputs is None:
        raise UsageError(
            f"{name} does not say what it takes: pass example_inputs=(tensor, ...), the arguments "
            "of one call, to onnxfold.export first; compile takes them from data=, where its "
            "arrays are called what forward calls its arguments"
        )
    kwargs: dict[str, Any] = {}
    args: tuple[Any, ...] = ()
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    else:
        args = _positional(torch, example_inputs)
    modes = {each: each.training for each in model.modules()}
    model.eval()
    try:
        if isinstance(model, torch.jit.ScriptModule):
            torch.jit.save(model, script)
            return Live(Source(script, "torchscript"), name, _shapes(torch, model, args, kwargs))
        return _save_module(torch, model, name, (args, kwargs), program, dynamic_batch)
    finally:
        for each, mode in modes.items():
            # train() would change the children too, which had modes of their own.
            each.training = mode


def _save_module(
    torch: Any,
    model: Any,
    name: str,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    path: Path,
    dynamic_batch: bool,
) -> Live:
    args, kwargs = arguments
    if dynamic_batch:
        opened = _with_open_batch(torch, model, args, kwargs)
        if opened is not None:
            torch.export.save(opened, path)
            return Live(Source(path, "torch-export"), name)
    try:
        torch.export.save(torch.export.export(model, args, kwargs), path)
        return Live(Source(path, "torch-export"), name)
    except Exception as error:  # noqa: BLE001 - tracing runs the user's program
        reason = " ".join(str(error).split())
    traced = path.with_suffix(".pt")
    examples: dict[str, Any] = (
        {"example_kwarg_inputs": kwargs} if kwargs else {"example_inputs": args}
    )
    try:
        with warnings.catch_warnings():
            # A trace holds one branch of an "if" on values: wrong for other inputs, so no export.
            warnings.simplefilter("error", torch.jit.TracerWarning)
            script = torch.jit.trace(model, check_trace=False, strict=False, **examples)
        torch.jit.save(script, traced)
    except Exception as error:
        raise InvalidModelError(f"{name}: torch.export cannot export it: {reason[:300]}") from error
    note = f"traced by torch.jit, because torch.export failed ({reason[:150]})"
    options = _shapes(torch, script, args, kwargs)
    return Live(Source(traced, "torchscript"), name, options, (note,))


def _with_open_batch(torch: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A program whose batch is open; None where the module fixes it.

    Sizes of 1 are always taken for fixed, so that the example is doubled.
    """
    tree: Any = torch.utils._pytree
    tensors = [each for each in tree.tree_leaves((args, kwargs)) if _has_batch(torch, each)]
    if not tensors:
        return None
    size = tensors[0].shape[0]

    def is_open(value: Any) -> bool:
        return _has_batch(torch, value) and value.shape[0] == size

    def doubled(value: Any) -> Any:
        return torch.cat([value, value]) if is_open(value) else value

    def dims(value: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if is_open(value) else None

    shapes: Any = tree.tree_map(dims, kwargs if kwargs else args)
    examples = tree.tree_map(doubled, (args, kwargs))
    try:
        return torch.export.export(model, *examples, dynamic_shapes=shapes)
    except Exception:  # noqa: BLE001 - whatever stands against it, the front end has another way
        return None


def _has_batch(torch: Any, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _positional(torch: Any, example_inputs: Any) -> tuple[Any, ...]:
    return (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)


def _shapes(
    torch: Any, script: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The shapes that the script does not keep, by the names of its arguments."""
    names = [each.name for each in script.forward.schema.arguments if each.name != "self"]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    found: dict[str, str] = {}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise UsageError(f"input '{name}' of TorchScript is no tensor")
        kind = str(value.dtype).removeprefix("torch.")
        found[name] = f"{kind}:{'x'.join(str(size) for size in value.shape)}"
    return {"inputs": found}
