"""Writes a Scan from a function that writes one step of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnxfold.passes.grad.bodies import BodyBuilder
from onnxfold.passes.grad.builder import Builder

Values: TypeAlias = Sequence[ir.Value]

WriteStep: TypeAlias = Callable[[BodyBuilder, Values, Values], tuple[Values, Values]]
"""From the states and the elements of a step to the next states and what the step gives."""


def scan(
    b: Builder, initial: Values, scanned: Values, write: WriteStep, *, reverse: bool = False
) -> tuple[ir.Value, ...]:
    """The last states, and what all steps gave, stacked along axis 0.

    Args:
        b: Writes the node.
        initial: The states before the first step.
        scanned: Tensors of which a step reads one element along axis 0.
        write: Writes the step; the next states have the types of the initial ones.
        reverse: From the last element to the first; what is given keeps its place.
    """
    body = BodyBuilder(b, f"{b.prefix}_step")
    states = [body.input(value, "state") for value in initial]
    elements = [_element(body, value) for value in scanned]
    following, given = write(body, states, elements)
    shapes = [each.shape for each in given]
    types = [each.type for each in given]
    graph = body.finish([*following, *given])
    direction = int(reverse)
    outputs = b.nodes(
        "Scan",
        [*initial, *scanned],
        len(graph.outputs),
        body=ir.AttrGraph("body", graph),
        num_scan_inputs=len(scanned),
        scan_input_directions=[direction] * len(scanned),
        scan_output_directions=[direction] * len(given),
    )
    for output, like in zip(outputs, initial, strict=False):
        b.assume_like(output, like)
    steps = None if scanned[0].shape is None else scanned[0].shape[0]
    for output, dtype, shape in zip(outputs[len(initial) :], types, shapes, strict=True):
        output.type = dtype
        output.shape = None if shape is None else ir.Shape([steps, *shape])
    return outputs


def _element(body: BodyBuilder, value: ir.Value) -> ir.Value:
    shape = None if value.shape is None else ir.Shape(value.shape[1:])
    return body.typed_input(value.type, shape, "element")
