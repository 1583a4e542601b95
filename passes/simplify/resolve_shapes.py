"""resolve-shapes: what shape arithmetic is known to compute takes the place of the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_ints, constant_tensor
from onnxfold.passes.dims import Axis, size_of
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import static_shape
from onnxfold.passes.size_arithmetic import SIZE_OPERATORS, Entry, entries
from onnxfold.passes.walk import use_count

_PARTS_OF_SHAPES = 15
"""The opset from which on Shape has ``start`` and ``end``."""


@rule("constant-sizes", *SIZE_OPERATORS)
def constant_sizes(node: ir.Node, rewriter: Rewriter) -> None:
    """Shape arithmetic of which every element is known: a constant."""
    output = node.outputs[0]
    found = entries(output)
    dims = static_shape(output)
    numbers = [each for each in found or () if isinstance(each, int)]
    if found is None or len(numbers) != len(found) or not found or output.is_graph_output():
        return
    if output.dtype is None or dims not in ((), (len(found),)):
        return
    array = np.array(numbers, dtype=output.dtype.numpy()).reshape(dims)
    sizes = rewriter.constant(node, array, name=f"{output.name}_folded")
    rewriter.replace_node(node, [sizes])


@rule("constant-target", "Reshape")
def constant_target(node: ir.Node, rewriter: Rewriter) -> None:
    """Reshape to a computed shape: to a constant one, with 0 and -1 for what is open."""
    source, wanted = node.inputs[0], node.inputs[1]
    allow_zero = node.attributes.get("allowzero")
    if wanted is None or constant_tensor(wanted) is not None or source is None:
        return
    found = entries(wanted)
    if found is None or (allow_zero is not None and (allow_zero.is_ref() or allow_zero.as_int())):
        return
    target = _target(source, found)
    if target is None:
        return
    shape = rewriter.constant(node, np.array(target, dtype=np.int64), name="shape")
    rewriter.set_input(node, 1, shape)


@rule("constant-expansion", "Expand")
def constant_expansion(node: ir.Node, rewriter: Rewriter) -> None:
    """Expand to a computed shape: to a constant one, with 1 for the axes that stay."""
    source, wanted = node.inputs
    found = None if constant_tensor(wanted) is not None else entries(wanted)
    if found is None or source is None or source.shape is None:
        return
    rank = len(source.shape)
    target: list[int] = []
    for at, entry in enumerate(found):
        axis = at - len(found) + rank
        stays = isinstance(entry, Axis) and axis >= 0 and size_of(source, axis) == entry
        if not stays and not isinstance(entry, int):
            return
        target.append(entry if isinstance(entry, int) else 1)
    shape = rewriter.constant(node, np.array(target, dtype=np.int64), name="shape")
    rewriter.set_input(node, 1, shape)


@rule("no-negative-sizes", "Where")
def no_negative_sizes(node: ir.Node, rewriter: Rewriter) -> None:
    """What takes the place of negative sizes, where there are none: the sizes."""
    condition, _, sizes = node.inputs
    equal = condition.producer() if condition is not None else None
    found = entries(sizes)
    if equal is None or equal.op_type != "Equal" or equal.domain or not found or sizes is None:
        return
    other = equal.inputs[1] if equal.inputs[0] is sizes else equal.inputs[0]
    numbers = constant_ints(other) or (0,)
    if sizes not in equal.inputs or max(numbers) >= 0 or len(numbers) not in (1, len(found)):
        return
    is_size = all(isinstance(each, Axis) or (each or -1) >= 0 for each in found)
    if is_size and static_shape(sizes) == static_shape(node.outputs[0]):
        rewriter.add_source(equal)
        rewriter.replace_node(node, [sizes])


@rule("part-of-shape", *SIZE_OPERATORS)
def part_of_shape(node: ir.Node, rewriter: Rewriter) -> None:
    """Shape arithmetic that picks sizes of neighbouring axes: a part of that shape."""
    output = node.outputs[0]
    axes = [each for each in entries(output) or () if isinstance(each, Axis)]
    dims = static_shape(output)
    if not axes or dims != (len(axes),) or rewriter.opset(node) < _PARTS_OF_SHAPES:
        return
    source, start = axes[0].value, axes[0].axis
    if [(each.value, each.axis) for each in axes] != [
        (source, start + count) for count in range(len(axes))
    ]:
        return
    if _is_part(node, source) or source.graph is not node.graph:
        return
    bounds = {"start": start, "end": start + len(axes)}
    name = output.name or "shape"
    sizes = rewriter.insert(
        node, "Shape", [source], name=name, attributes=bounds, dtype=ir.DataType.INT64, shape=dims
    )
    if output.dtype not in (None, ir.DataType.INT64):
        to = {"to": int(output.dtype)}
        sizes = rewriter.insert(
            node, "Cast", [sizes], name=name, attributes=to, dtype=output.dtype, shape=dims
        )
    rewriter.replace_node(node, [sizes])


@rule("sizes-in-64-bits", "Cast")
def sizes_in_64_bits(node: ir.Node, rewriter: Rewriter) -> None:
    """Sizes that were joined in 32 bits: joined as they are."""
    before, output = node.inputs[0], node.outputs[0]
    joint = before.producer() if before is not None else None
    found = entries(output)
    if before is None or joint is None or joint.op_type != "Concat" or found is None:
        return
    if output.dtype != ir.DataType.INT64 or before.dtype != ir.DataType.INT32 or None in found:
        return
    if rewriter.opset(node) < _PARTS_OF_SHAPES:
        return
    if use_count(before) != 1 or before.is_graph_output() or joint.graph is not node.graph:
        return
    if any(isinstance(each, Axis) and each.value.graph is not node.graph for each in found):
        return
    name = output.name or "sizes"
    parts = [_part(node, each, name, rewriter) for each in found]
    dims = (len(found),)
    attributes = {"axis": 0}
    joined = rewriter.insert(
        node, "Concat", parts, name=name, attributes=attributes, dtype=output.dtype, shape=dims
    )
    rewriter.add_source(joint)
    rewriter.replace_node(node, [joined])
    rewriter.erase(joint)


@dataclass(frozen=True)
class ResolveShapes(PatternPass):
    """Replace shape arithmetic by what it is known to compute, through all its operators.

    A size is a number, or the size of an axis that another one is known to equal: batches are
    followed through convolutions, elementwise operators, transposes and reshapes. Reshape and
    Expand to computed shapes get constant ones where at most one size is open (-1), or where the
    open ones are those of their operand (0). Open sizes stay open.
    """

    name: ClassVar[str] = "resolve-shapes"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """Constants first: less is left for the others."""
        return (
            constant_sizes,
            no_negative_sizes,
            constant_target,
            constant_expansion,
            part_of_shape,
            sizes_in_64_bits,
        )


def _target(source: ir.Value, found: Sequence[Entry]) -> list[int] | None:
    """``found`` as the constant operand of Reshape; None where it has none."""
    rank = 0 if source.shape is None else len(source.shape)
    numbers = [each for each in found if isinstance(each, int)]
    # A zero may be an empty axis or a copy; beside an empty axis -1 says nothing.
    if 0 in numbers or any(each < -1 for each in numbers):
        return None
    if len(found) - len(numbers) + numbers.count(-1) <= 1:
        return [each if isinstance(each, int) else -1 for each in found]
    target = [
        each
        if isinstance(each, int)
        else (0 if at < rank and each is not None and size_of(source, at) == each else -1)
        for at, each in enumerate(found)
    ]
    return target if target.count(-1) <= 1 else None


def _part(node: ir.Node, entry: Entry, name: str, rewriter: Rewriter) -> ir.Value:
    """One size, in an axis of its own."""
    if not isinstance(entry, Axis):
        return rewriter.constant(node, np.array([entry], dtype=np.int64), name=f"{name}_part")
    bounds = {"start": entry.axis, "end": entry.axis + 1}
    return rewriter.insert(
        node,
        "Shape",
        [entry.value],
        name=f"{name}_part",
        attributes=bounds,
        dtype=ir.DataType.INT64,
        shape=[1],
    )


def _is_part(node: ir.Node, source: ir.Value) -> bool:
    """Whether ``node`` is what ``part-of-shape`` writes already."""
    if node.op_type == "Shape":
        return node.inputs[0] is source
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node.op_type == "Cast" and before is not None and before.op_type == "Shape"
