"""What a program of torch computes inside: the values that have the same names in ONNX."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import Any, cast

from onnxfold.runtime.export.workers.protocol import Feed


def values_inside(program: Any, arguments: Sequence[Any], tensors: Collection[str]) -> Feed:
    """Run ``program`` node by node.

    Args:
        program: The ``ExportedProgram`` that torch's exporter translates, node for node.
        arguments: Values of all its inputs, one after the other.
        tensors: Names of nodes whose values are wanted; what the program does not have is left out.
    """
    torch: Any = importlib.import_module("torch")
    wanted, found = frozenset(tensors), Feed()

    class Reader(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: Any) -> Any:
            value: Any = cast("Any", super().run_node(n))
            if n.op == "call_function" and n.name in wanted and isinstance(value, torch.Tensor):
                # A later operator may write to the same memory.
                found[n.name] = value.detach().numpy().copy()
            return value

    given = iter(arguments)
    flat = [_held(program, each, given) for each in program.graph_signature.input_specs]
    with torch.no_grad():
        Reader(program.graph_module).run(*flat)
    return found


def _held(program: Any, spec: Any, given: Any) -> Any:
    """What an input of the program's graph gets: a parameter, a buffer, a constant, an argument."""
    if spec.kind.name == "USER_INPUT":
        return next(given)
    held = program.state_dict if spec.target in program.state_dict else program.constants
    return held[spec.target]
