"""Reads back what the guards wrote, so that folding a folded model gives the same model again.

To a fold, the guards' forms are float arithmetic, which it would fold further. They are taken back
first, exactly, and written again where they are still needed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.guards import PAIR_ATTRIBUTES, known_shape
from onnxfold.passes.fold.misread import PROPAGATED, unmoved_source
from onnxfold.passes.fold.types import (
    DEQUANTIZE,
    TypeState,
    is_dequantize,
    is_parametric,
    is_quantize,
)
from onnxfold.passes.fold.unread import erase_unread
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs


def unguard(model: ir.Model, rewriter: Rewriter) -> None:
    """Undo every ``guard-float`` and ``guard-movement`` that an earlier fold wrote.

    What nothing reads goes first: it would ask for types that an earlier fold no longer saw.

    Args:
        model: The model.
        rewriter: The gate.
    """
    for graph in reversed(tuple(all_graphs(model))):
        for node in reversed(tuple(graph)):
            if node.graph is not None and node.outputs:
                erase_unread(node.outputs[0], rewriter)
    types = TypeState(recode=False)
    for graph in all_graphs(model):
        known: dict[tuple[object, ...], list[ir.Value]] = {}
        for node in tuple(graph):
            if is_dequantize(node) and not is_parametric(node):
                key = _key(node, constant_array(node.inputs[1]))
                known.setdefault(key, []).append(node.outputs[0])
            elif node.op_type == "Mul" and not node.domain:
                _merge_factor(node, known, rewriter)
            elif node.op_type == "Reshape" and not node.domain:
                _merge_repeated(node, rewriter)
        for node in reversed(tuple(graph)):
            if is_quantize(node) and not is_parametric(node):
                _merge_pair(node, types, rewriter)


def _merge_factor(
    node: ir.Node, known: dict[tuple[object, ...], list[ir.Value]], rewriter: Rewriter
) -> None:
    """Make one DequantizeLinear of one in units and the Mul that scales them."""
    data, factor = node.inputs[0], constant_array(node.inputs[1])
    dequantize = None if data is None else data.producer()
    if data is None or dequantize is None or factor is None or dequantize.graph is not node.graph:
        return
    if not is_dequantize(dequantize) or len(data.uses()) != 1 or data.is_graph_output():
        return
    scale = _merged_scale(dequantize, factor)
    if scale is None:
        return
    output, factors = node.outputs[0], node.inputs[1]
    alike = known.setdefault(_key(dequantize, scale), [])
    with rewriter.step("unguard-float", node, sources=[dequantize]):
        if not alike:
            name = f"{(output.name or '').removesuffix('_guarded_mul')}_scale"
            merged = rewriter.insert(
                node,
                DEQUANTIZE,
                [
                    dequantize.inputs[0],
                    rewriter.constant(node, scale, name=name),
                    *dequantize.inputs[2:],
                ],
                name=f"{output.name}_unguarded",
                attributes=dequantize.attributes,
                domain=dequantize.domain,
                dtype=ir.DataType.FLOAT,
                shape=output.shape,
            )
            alike.append(merged)
        # Of several alike the one it was split from: what else reads that decides what is folded.
        split = (each for each in alike if f"{each.name}_guarded" == data.name)
        rewriter.replace_node(node, [next(split, alike[0])])
    for each in (data, factors):
        erase_unread(each, rewriter)


def _merge_repeated(node: ir.Node, rewriter: Rewriter) -> None:
    """Make one DequantizeLinear of one that repeats its scale and a Reshape that does nothing."""
    data, sizes = node.inputs
    shape = constant_array(sizes)
    dequantize = None if data is None else data.producer()
    if data is None or dequantize is None or dequantize.graph is not node.graph or shape is None:
        return
    rank = len(known_shape(dequantize) or ()) if is_dequantize(dequantize) else 0
    does_nothing = shape.size == rank > 0 and not shape.any()
    if not does_nothing or node.attributes.get_int("allowzero", 0) or len(data.uses()) != 1:
        return
    repeated = [constant_array(each) for each in dequantize.inputs[1:]]
    if any(each is None or each.ndim != 1 or np.unique(each).size != 1 for each in repeated):
        return
    output = node.outputs[0]
    with rewriter.step("unguard-repeated", node, sources=[dequantize]):
        once = [
            rewriter.constant(node, each[:1].reshape(()), name=value.name or "once")
            for value, each in zip(dequantize.inputs[1:], repeated, strict=True)
            if value is not None and each is not None
        ]
        merged = rewriter.insert(
            node,
            DEQUANTIZE,
            [dequantize.inputs[0], *once],
            name=f"{output.name}_unguarded",
            domain=dequantize.domain,
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
        rewriter.replace_node(node, [merged])
    for each in (data, sizes):
        erase_unread(each, rewriter)


def _merged_scale(dequantize: ir.Node, factor: Array) -> Array | None:
    """The scale of both in one; None where they are not what a guard writes."""
    unit = constant_array(dequantize.inputs[1])
    shape = known_shape(dequantize)
    if unit is None or unit.dtype != np.float32 or factor.dtype != np.float32:
        return None
    # A guard's factor is of full rank, or a scalar where the rank is not known.
    if unit.ndim > 1 or factor.size != unit.size or factor.ndim != len(shape or ()):
        return None
    if shape is not None and not factor.ndim:
        return None
    if unit.size > 1:
        axis = dequantize.attributes.get_int("axis", 1) % factor.ndim
        if factor.shape[axis] != unit.size:
            return None
    scale: Array = factor.reshape(unit.shape) * unit
    written = 0.5 if np.all(scale == 1.0) else 1.0
    return scale if np.all(unit == written) else None


def _merge_pair(quantize: ir.Node, types: TypeState, rewriter: Rewriter) -> None:
    """Remove Q and DQ behind a movement of what is dequantized alike: they change nothing."""
    if any(quantize.attributes.get_int(key, 0) != each for key, each in PAIR_ATTRIBUTES.items()):
        return
    moved, codes = quantize.inputs[0], quantize.outputs[0]
    movement = None if moved is None else moved.producer()
    if moved is None or movement is None or movement.graph is not quantize.graph:
        return
    if movement.domain or movement.op_type not in PROPAGATED or codes.is_graph_output():
        return
    source, affine = unmoved_source(movement), types.parameters(quantize)
    if source is None or affine is None or types.parameters(source.dequantize) is not affine:
        return
    if not affine.per_tensor or affine.dtype != ir.DataType.INT8:
        return
    readers = [use.node for use in codes.uses()]
    alike = (is_dequantize(each) and types.parameters(each) is affine for each in readers)
    if any(each.graph is not quantize.graph for each in readers) or not all(alike):
        return
    for dequantize in dict.fromkeys(readers):
        with rewriter.step("unguard-movement", dequantize, sources=[quantize]):
            rewriter.replace_node(dequantize, [moved])
    erase_unread(codes, rewriter)


def _key(dequantize: ir.Node, scale: Array | None) -> tuple[object, ...]:
    """What two DequantizeLinear of the same numbers have in common."""
    zero_point = constant_array(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    return (
        dequantize.inputs[0],
        dequantize.domain,
        dequantize.attributes.get_int("axis", 1),
        *(None if each is None else (each.shape, each.tobytes()) for each in (scale, zero_point)),
    )
