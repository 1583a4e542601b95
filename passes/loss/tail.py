"""Finds, behind what a model answers, the scores or the probabilities that it answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnxfold.passes.shapes import axes_of

Wanted = Literal["logits", "probabilities", "any"]
"""What a loss is computed from."""

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
"""The element types that a loss can be attached to."""

_SQUASHING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_ANSWERING = frozenset({"ArgMax", "TopK", "Hardmax", "ZipMap", "Cast", "Identity", "Dropout"})
_VIEWING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"})
_CODING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_CLASSIFIERS = frozenset({"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"})
_SQUASHING_CODES = frozenset({"QLinearSoftmax", "QLinearSigmoid"})
_LAST_AXIS_FROM = 13


@dataclass(frozen=True)
class Tail:
    """What lies behind an output.

    Attributes:
        value: The tensor to attach a loss to.
        skipped: The nodes between it and the output, from the output backwards.
        squashed: The softmax or sigmoid that reads ``value`` or makes it; None where there is none.
        class_axis: The axis over which that softmax is taken; None where it is not known.
        closed: A node that computes probabilities and shows no scores; None where there is none.
    """

    value: ir.Value
    skipped: tuple[ir.Node, ...] = ()
    squashed: ir.Node | None = None
    class_axis: int | None = None
    closed: ir.Node | None = None


def behind(output: ir.Value, wanted: Wanted, opset: int) -> Tail:
    """What a loss on ``output`` is computed from.

    Walks back through the nodes that turn scores into an answer: Softmax, LogSoftmax or Sigmoid
    (or a softmax spelled out with Exp and ReduceSum), and ArgMax, TopK, Hardmax, ZipMap, Cast,
    reshapes and quantizers behind them. An output that is what is wanted is taken as it is.

    Args:
        output: An output of the main graph, or a tensor inside.
        wanted: Scores before the softmax, probabilities behind it, or real numbers of any kind.
        opset: The version of ai.onnx that the graph is read under.
    """
    chain = _chain(output)
    squashing = next((index for index, node in enumerate(chain) if _squashed(node)), None)
    first_float = next((i for i, value in enumerate(_values(output, chain)) if _real(value)), 0)
    if squashing is None or wanted == "any":
        value = _values(output, chain)[first_float]
        closed = _closed(value) if wanted == "logits" else None
        return Tail(value, tuple(chain[:first_float]), closed=closed)
    node = chain[squashing]
    axis = _class_axis(node, opset)
    if wanted == "probabilities":
        # What only reshapes or casts probabilities may stay: the first real numbers will do.
        at = min(first_float, squashing)
        same = all(each.op_type not in _VIEWING for each in chain[at:squashing])
        taken = chain[:at]
        value = _values(output, chain)[at]
        return Tail(value, tuple(taken), node, axis if same else None)
    scores = _squashed(node)
    assert scores is not None
    return Tail(scores, tuple(chain[: squashing + 1]), node, axis)


def _chain(output: ir.Value) -> list[ir.Node]:
    """The nodes back from ``output`` up to the first that squashes, or that computes anything."""
    found: list[ir.Node] = []
    node = output.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        if _squashed(node) is not None:
            return [*found, node]
        if node.op_type not in _ANSWERING | _VIEWING | _CODING:
            return found
        found.append(node)
        node = node.inputs[0].producer()
    return found


def _values(output: ir.Value, chain: list[ir.Node]) -> list[ir.Value]:
    """``output``, and what each node of ``chain`` reads first."""
    return [output, *(value for node in chain if (value := node.inputs[0]) is not None)]


def _squashed(node: ir.Node) -> ir.Value | None:
    """The scores that ``node`` turns into probabilities; None where it does no such thing."""
    if node.op_type in _SQUASHING and not node.domain:
        return node.inputs[0]
    if node.op_type != "Div" or len(node.inputs) != 2:
        return None
    over, under = (None if value is None else value.producer() for value in node.inputs)
    if over is None or under is None or (over.op_type, under.op_type) != ("Exp", "ReduceSum"):
        return None
    return over.inputs[0] if under.inputs[0] is node.inputs[0] else None


def _class_axis(node: ir.Node, opset: int) -> int | None:
    if node.op_type == "Sigmoid":
        return None
    if node.op_type == "Div":
        total = node.inputs[1]
        reduced = None if total is None else total.producer()
        axes = None if reduced is None else axes_of(reduced, "axes", 1)
        return axes[0] if axes is not None and len(axes) == 1 else None
    attribute = node.attributes.get("axis")
    if attribute is not None:
        return None if attribute.is_ref() else attribute.as_int()
    return -1 if opset >= _LAST_AXIS_FROM else 1


def _closed(value: ir.Value) -> ir.Node | None:
    """The node that makes probabilities of scores nobody sees."""
    node = value.producer()
    while node is not None and node.op_type in _CODING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return None
    if node.op_type in _SQUASHING_CODES:
        return node
    if node.op_type not in _CLASSIFIERS:
        return None
    post = node.attributes.get("post_transform")
    return None if post is None or post.as_string() == "NONE" else node


def _real(value: ir.Value) -> bool:
    return value.dtype in FLOATS
