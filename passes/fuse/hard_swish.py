"""Fuses the primitives of a hard swish into HardSwish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.channel_affine import only_consumer
from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_INTRODUCED = 14


@rule("fuse-hard-swish", "Mul")
def _fuse(node: ir.Node, rewriter: Rewriter) -> None:
    for source, gate in (tuple(node.inputs), tuple(reversed(node.inputs))):
        factor = _gate_factor(gate, source)
        if factor is None or source is None:
            continue
        last = _scaled_to_one(node, factor)
        if last is None:
            return
        if rewriter.opset(node) < _INTRODUCED:
            rewriter.remark(node, "HardSwish needs opset 14", "run upgrade-opset first")
            return
        fused = rewriter.insert(
            last,
            "HardSwish",
            [source],
            name=last.name or "hard_swish",
            dtype=source.dtype,
            shape=source.shape,
        )
        rewriter.replace_node(last, [fused])
        if last is not node:
            rewriter.erase(node)
        return


def _gate_factor(gate: ir.Value | None, source: ir.Value | None) -> float | None:
    """F where ``gate`` is f * clip(source / 6 + 1 / 2, 0, 1); None where it is not."""
    node = gate.producer() if gate is not None else None
    if node is None or node.domain or source is None:
        return None
    match node.op_type:
        case "HardSigmoid":
            alpha, beta = (node.attributes.get_float(k, d) for k, d in _HARD_SIGMOID_DEFAULTS)
            fits = node.inputs[0] is source and _close(6 * alpha, 1) and beta == 0.5
            return 1.0 if fits else None
        case "Clip":
            fits = _bounds(node) == (0.0, 6.0) and _is_sum(node.inputs[0], source, 3.0)
            return 6.0 if fits else None
        case "Div" | "Mul":
            for inner, scale in _scalings(node):
                factor = _gate_factor(inner, source)
                if factor is not None:
                    return factor * scale
            return None
        case _:
            return None


_HARD_SIGMOID_DEFAULTS = (("alpha", 0.2), ("beta", 0.5))


def _scaled_to_one(node: ir.Node, factor: float) -> ir.Node | None:
    """The node at which ``node``'s factor is 1: itself, or the scaling that alone reads it."""
    if _close(factor, 1):
        return node
    consumer = only_consumer(node.outputs[0])
    if consumer is None:
        return None
    for value, scale in _scalings(consumer):
        if value is node.outputs[0] and _close(factor * scale, 1):
            return consumer
    return None


def _scalings(node: ir.Node) -> list[tuple[ir.Value, float]]:
    """The operands that ``node`` multiplies with a constant number, and that number."""
    if node.domain or node.op_type not in ("Mul", "Div"):
        return []
    left, right = node.inputs
    orders = [(left, right)] if node.op_type == "Div" else [(left, right), (right, left)]
    found: list[tuple[ir.Value, float]] = []
    for value, constant in orders:
        number = constant_scalar(constant)
        # One number with axes of its own would raise the rank.
        if value is None or not number or constant is None or constant.shape is None:
            continue
        if len(constant.shape) <= (1 if value.shape is None else len(value.shape)):
            found.append((value, float(number) if node.op_type == "Mul" else 1 / float(number)))
    return found


def _is_sum(value: ir.Value | None, source: ir.Value, offset: float) -> bool:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Add" or node.domain:
        return False
    left, right = node.inputs
    number = right if left is source else left if right is source else None
    if number is None or number.shape is None or source.shape is None:
        return number is not None and constant_scalar(number) == offset and number.shape == ()
    return constant_scalar(number) == offset and len(number.shape) <= len(source.shape)


def _bounds(clip: ir.Node) -> tuple[float | None, float | None]:
    """Lower and upper bound of a Clip, from attributes (opset 6) or inputs."""
    if "min" in clip.attributes or "max" in clip.attributes:
        get = clip.attributes.get_float
        return get("min", float("-inf")), get("max", float("inf"))
    bounds = [constant_scalar(value) for value in clip.inputs[1:3]]
    low, high = (None if each is None else float(each) for each in (*bounds, None, None)[:2])
    return low, high


def _close(value: float, expected: float) -> bool:
    """Equal up to the rounding of constants to float32."""
    return abs(value - expected) < 1e-6


@dataclass(frozen=True)
class FuseHardSwish(PatternPass):
    """Fuse x * clip(x + 3, 0, 6) / 6, however it is scaled, into HardSwish.

    ONNX Runtime applies it inside the preceding Conv, which it does for no other form. Needs
    opset 14.
    """

    name: ClassVar[str] = "fuse-hard-swish"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_fuse,)
