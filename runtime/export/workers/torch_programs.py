"""Programs of ``torch.export`` (.pt2): their example inputs, open dimensions and layers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request
from onnxfold.runtime.export.workers.torch_models import Leaf, TorchModel, export_model
from onnxfold.runtime.export.workers.torch_onnx import Unsupported

_QUANTIZED = ("torch.ao.quantization.fx._decomposed", "torchao.quantization.pt2e.quantize_pt2e")
"""Modules that make the operators of quantized programs known; the second takes long to load."""


def export(request: Request, folder: Path) -> Answer:
    """Load the program, put it into evaluation mode, convert it, and run it."""
    torch: Any = importlib.import_module("torch")
    program = _load(torch, request.path)
    trained = _to_evaluation(program)
    return export_model(_model(torch, program, trained), request, folder)


def _load(torch: Any, path: str) -> Any:
    """Load a program, with the operators that it needs as far as they can be had."""
    reasons: list[Exception] = []
    for name in _QUANTIZED:
        with suppress(ImportError):
            importlib.import_module(name)
        try:
            program = torch.export.load(path)
            forget_ranges_of_expressions(program)
            return program
        except Exception as error:  # noqa: BLE001 - what it raises depends on what is missing
            reasons.append(error)
    raise FrontEndError(_why_not_loaded(reasons[-1]), "unsupported") from reasons[-1]


def forget_ranges_of_expressions(program: Any) -> None:
    """Keep the ranges of symbols only.

    Loading also notes that of ``2*height``, where a dimension is declared so; decomposing for ONNX
    takes whatever has a range for a symbol, and fails.
    """
    values = (node.meta.get("val") for node in program.graph.nodes)
    sizes = [size for value in values for size in getattr(value, "shape", ())]
    for size in sizes:
        if isinstance(size, int):
            continue
        ranges = size.node.shape_env.var_to_range
        for key in [key for key in ranges if not key.is_Symbol]:
            del ranges[key]


def layer_of(stack: Mapping[str, Any] | None) -> str:
    """The innermost module of a node's ``nn_module_stack``, by its path; may be empty."""
    entries = list((stack or {}).values())
    return str(entries[-1][0]) if entries else ""


def _model(torch: Any, program: Any, trained: Sequence[str]) -> TorchModel:
    if program.example_inputs is None:
        raise FrontEndError("it was saved without example inputs: export it again", "usage")
    args, kwargs = program.example_inputs
    values, structure = torch.utils._pytree.tree_flatten((tuple(args), dict(kwargs)))
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    leaves = [_leaf(torch, name, value, nodes) for name, value in zip(names, values, strict=True)]
    module = program.module()

    def call(arguments: Sequence[Any]) -> Any:
        given, named = torch.utils._pytree.tree_unflatten(list(arguments), structure)
        return module(*given, **named)

    notes: tuple[str, ...] = ()
    if trained:
        notes = (
            f"exported as for inference, although it was saved in training mode: {trained[0]} and "
            f"{len(trained) - 1} other operators were switched"
            if len(trained) > 1
            else f"exported as for inference, although it was saved in training mode: {trained[0]}",
        )
    return TorchModel(
        call=call,
        leaves=leaves,
        program=program,
        module=module,
        arguments=(tuple(args), dict(kwargs)),
        notes=notes,
        unsupported=lambda found: _named(program, found),
        is_quantized=any("quantized" in str(node.target) for node in program.graph.nodes),
    )


def _leaf(torch: Any, name: object, value: Any, nodes: Mapping[str, Any]) -> Leaf:
    if not isinstance(value, torch.Tensor):
        return Leaf(str(name), value, None)
    meta = nodes[str(name)].meta["val"]
    return Leaf(str(name), value, tuple(_dimension(each) for each in meta.shape))


def _dimension(size: Any) -> Any:
    """A number, or the expression in symbols that an open dimension has."""
    return size if isinstance(size, int) else size.node.expr


def _to_evaluation(program: Any) -> list[str]:
    """Switch dropout and batch normalization to inference; names what was not so already."""
    found: list[str] = []
    for node in program.graph.nodes:
        place = _training_argument(str(node.target))
        if node.op != "call_function" or place is None or len(node.args) <= place:
            continue
        if node.args[place] is True:
            node.args = (*node.args[:place], False, *node.args[place + 1 :])
            found.append(layer_of(node.meta.get("nn_module_stack")) or node.name)
    # Counting batches is the only thing that a program in training mode still writes to.
    if found:
        program.graph_module.recompile()
    return found


def _training_argument(target: str) -> int | None:
    """Where an operator takes whether it is in training; None for most."""
    name = target.removeprefix("aten.").partition(".")[0]
    return {
        "dropout": 2,
        "feature_dropout": 2,
        "alpha_dropout": 2,
        "native_dropout": 2,
        "batch_norm": 5,
        "instance_norm": 5,
        "rrelu": 3,
    }.get(name)


def _named(program: Any, found: Unsupported) -> str:
    """The layer that uses an operator, for messages."""
    for node in program.graph.nodes:
        if node.op == "call_function" and is_same_operator(str(node.target), found.operator):
            return layer_of(node.meta.get("nn_module_stack")) or str(node.name)
    return ""


def is_same_operator(target: str, found: str) -> bool:
    """Whether ``aten._foo`` is what became of ``aten.foo.default``, by its name alone."""
    wanted, name = found.split("."), target.split(".")
    return wanted[0] == name[0] and wanted[1].strip("_") == name[1].strip("_")


def _why_not_loaded(error: Exception) -> str:
    """One line for what ``torch.export.load`` raised, which shows all it tried."""
    words = " ".join(str(error).split())
    if "operator" in words.lower() or "has no attribute" in words or "_OpNamespace" in words:
        return (
            f"torch cannot load it: {words[:250]}; it uses operators of its own: "
            "export the live module from the program that defines them"
        )
    return f"torch cannot load it: {words[:300]}"
