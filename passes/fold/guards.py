"""Keeps ONNX Runtime's optimizer from misreading what stays float.

Its Q/DQ fusion takes a float op between DequantizeLinear and QuantizeLinear for an integer one
without looking at everything. What ``misread`` finds is rewritten to the same numbers in a form
that is taken for what it is; most forms cost nothing, the last resort is one Mul.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.misread import (
    PROPAGATED,
    Source,
    addition,
    has_one_zero_point,
    is_misread,
    is_moved,
    merged_source,
    misread_bias,
    multiplies_codes,
    quantize_after,
    quantized_bias,
    sources,
    unmoved_source,
    unmoved_sums,
)
from onnxfold.passes.fold.plan import OLDEST_OPSET, Plan
from onnxfold.passes.fold.types import DEQUANTIZE, QUANTIZE, is_dequantize, is_quantize
from onnxfold.passes.rewriter import Rewriter

PAIR_ATTRIBUTES = {"saturate": 1}
"""On the QuantizeLinear of a guard: the default, by which another fold recognizes it."""

_ABORTS = (
    "its permutation is not written and its rank not known: behind one scale a channel, "
    "onnxruntime 1.23 aborts the process on it"
)
_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)
_PAIRS_HAVE_TYPES = 21
"""Since this opset QuantizeLinear has output_dtype, which ONNX Runtime's own pairs set wrongly."""


def guard_float_ops(plan: Plan, rewriter: Rewriter, *, float_weights: bool = False) -> set[ir.Node]:
    """Rewrite what would be misread.

    Args:
        plan: The plan, carried out.
        rewriter: The gate.
        float_weights: Whether the weights of linear ops that were refused become float.

    Returns:
        The ops whose dequantized operands are not fused any more.
    """
    guarded: set[ir.Node] = set()
    for node in [each for graph in plan.graphs for each in graph]:
        if node.graph is None:
            continue
        if is_quantize(node):
            _write_zero_point(node, plan, rewriter)
            _drop_type(node, rewriter)
            merged = merged_source(node, plan.types)
            if merged is not None:
                _separate(node, [merged], rewriter)
            continue
        if is_dequantize(node):
            _write_zero_point(node, plan, rewriter)
            _bring_in(node, rewriter)
        if node.domain == "" and node.op_type == "Transpose":
            _write_permutation(node, rewriter)
        if node.domain == "" and node.op_type in PROPAGATED:
            _pair_after(node, plan, rewriter)
        for index in (0, 1) if multiplies_codes(node) else (0,) if is_moved(node) else ():
            _move_sums(node, index, plan, rewriter)
        if node.domain == "" and node.op_type in ("Gemm", "MatMul"):
            _write_bias(node, plan, rewriter)
        becomes_float = float_weights and rewriter.opset(node) >= OLDEST_OPSET
        if is_misread(node, plan, rewriter.opset(node), float_weights=becomes_float):
            guarded.add(node)
            _separate(node, sources(node), rewriter)
    return guarded


def feeds_quantize(node: ir.Node) -> bool:
    """Whether the output is quantized, at once or behind ops that may be merged into ``node``."""
    return quantize_after(node) is not None


def reads_dequantized(node: ir.Node) -> bool:
    """Whether the data of ``node`` comes from a DequantizeLinear of computed codes."""
    return any(each.reader is node and each.index == 0 for each in sources(node))


def _separate(node: ir.Node, found: list[Source], rewriter: Rewriter) -> None:
    """Let the sources' readers read q - z times the scale: no DequantizeLinear, and exact."""
    for source in found:
        scale = constant_array(source.dequantize.inputs[1])
        shape = None if scale is None else _broadcast_shape(scale, source.dequantize)
        if scale is None or shape is None:
            continue
        with rewriter.step("guard-float", node):
            real = _scaled(source, scale, shape, rewriter)
            rewriter.set_input(source.reader, source.index, real)
        _erase_unread(source.dequantize, rewriter)


def _scaled(source: Source, scale: Array, shape: tuple[int, ...], rewriter: Rewriter) -> ir.Value:
    dequantize, output = source.dequantize, source.dequantize.outputs[0]
    name = f"{output.name}_guarded"
    anchor = source.reader
    # A Mul by one would be removed again; halves and doubles are as exact.
    step = np.float32(0.5 if np.all(scale == 1.0) else 1.0)
    units = rewriter.constant(anchor, np.full_like(scale, step), name=f"{name}_unit")
    steps = rewriter.insert(
        anchor,
        DEQUANTIZE,
        [dequantize.inputs[0], units, *dequantize.inputs[2:]],
        name=name,
        attributes=dequantize.attributes,
        domain=dequantize.domain,
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    factor = rewriter.constant(anchor, (scale / step).reshape(shape), name=f"{name}_scale")
    return rewriter.insert(
        anchor,
        "Mul",
        [steps, factor],
        name=f"{name}_mul",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )


def _broadcast_shape(scale: Array, dequantize: ir.Node) -> tuple[int, ...] | None:
    """The shape in which the scale is multiplied; None where the rank is not known."""
    if scale.dtype != np.float32 or scale.ndim > 1:
        return None
    shape = known_shape(dequantize)
    if scale.size == 1:
        # Of full rank: another fold would take a scalar factor back into the DequantizeLinear.
        return (1,) * len(shape or ())
    if shape is None:
        return None
    rank = len(shape)
    axis = dequantize.attributes.get_int("axis", 1) % rank
    return tuple(-1 if index == axis else 1 for index in range(rank))


def known_shape(dequantize: ir.Node) -> ir.Shape | None:
    """The shape of what is dequantized, as far as the codes or anything made of them tells."""
    codes = dequantize.inputs[0]
    readers = [] if codes is None else [use.node for use in codes.uses()]
    alike = [each.outputs[0] for each in readers if is_dequantize(each)]
    values = (codes, dequantize.outputs[0], *alike)
    return next(
        (each.shape for each in values if each is not None and each.shape is not None), None
    )


def _write_bias(node: ir.Node, plan: Plan, rewriter: Rewriter) -> None:
    """Give a product a bias that is read as it is meant."""
    misread = misread_bias(node, plan.types)
    if misread is not None:
        real = misread.known.type.dequantize(_codes(misread.known.codes))
        _set_constant(node, misread.reader, misread.index, real, rewriter)
    if addition(node) is None or _int8_source(node, plan, rewriter) is None:
        return
    # ONNX Runtime makes a Gemm of a product and a vector, with a Reshape around which it puts
    # such a pair; it does not where what is added is a matrix.
    reader, index = addition(node) or (node, 0)
    value, found = reader.inputs[index], quantized_bias(node, plan.types)
    vector = constant_array(value)
    if found is not None:
        vector = found.known.type.dequantize(_codes(found.known.codes))
    if vector is not None and vector.ndim == 1 and (_rank(node.outputs[0]) or 0) > 2:
        _set_constant(node, reader, index, vector.reshape(1, -1), rewriter)


def _set_constant(
    node: ir.Node, reader: ir.Node, index: int, array: Array, rewriter: Rewriter
) -> None:
    old = reader.inputs[index]
    with rewriter.step("guard-bias", node):
        name = f"{old.name if old is not None else 'bias'}_real"
        rewriter.set_input(reader, index, rewriter.constant(reader, array, name=name))
    producer = None if old is None else old.producer()
    if producer is not None:
        _erase_unread(producer, rewriter)


def _write_zero_point(node: ir.Node, plan: Plan, rewriter: Rewriter) -> None:
    """Write an absent zero point down: it says what the codes are.

    ONNX Runtime puts pairs with the same parameters around movements, and a QuantizeLinear without
    a zero point makes uint8 codes. It takes the codes of Add, Mul, Where and Concat for uint8 where
    only output_dtype says int8. Sums in int32 have none: no pair of theirs can be loaded.
    """
    affine = plan.types.parameters(node)
    if len(node.inputs) > 2 or affine is None:
        return
    if is_dequantize(node) and constant_array(node.inputs[0]) is not None:
        if not has_one_zero_point(node, affine):
            return
    elif affine.dtype in (ir.DataType.UINT8, ir.DataType.INT32):
        return
    with rewriter.step("guard-zero-point", node):
        name = f"{node.outputs[0].name}_zero_point"
        rewriter.set_input(node, 2, rewriter.constant(node, affine.zero_point, name=name))


def _drop_type(quantize: ir.Node, rewriter: Rewriter) -> None:
    """Drop a type that the zero point says as well.

    ONNX Runtime makes int8 codes uint8, leaves output_dtype int8, and refuses the model it made.
    """
    if len(quantize.inputs) > 2 and "output_dtype" in quantize.attributes:
        with rewriter.step("guard-zero-point", quantize):
            rewriter.set_attribute(quantize, "output_dtype", None)


def _bring_in(node: ir.Node, rewriter: Rewriter) -> None:
    """Give weights that are multiplied in a body constants of that body.

    ONNX Runtime packs such weights for MatMulNBits, and looks for them in the body alone.
    """
    readers = [use.node for use in node.outputs[0].uses()]
    turned = [use.node for each in readers for use in each.outputs[0].uses()]
    if not any(each.op_type == "MatMul" for each in (*readers, *turned)):
        return
    for index, value in enumerate(node.inputs):
        array = constant_array(value)
        if array is None or value is None or not value.is_initializer():
            continue
        if value.graph is node.graph:
            continue
        with rewriter.step("guard-body", node):
            inner = rewriter.constant(node, array, name=f"{value.name}_inner")
            rewriter.set_input(node, index, inner)


def _write_permutation(node: ir.Node, rewriter: Rewriter) -> None:
    """Write the permutation of a Transpose down, where it reverses the dimensions.

    Behind a DequantizeLinear with one scale a channel, ONNX Runtime 1.23 looks for it while it
    optimizes, and aborts the process.
    """
    rank = _rank(node.outputs[0])
    if "perm" in node.attributes:
        return
    if rank is None:
        source = None if node.inputs[0] is None else node.inputs[0].producer()
        scale = constant_array(source.inputs[1]) if source and is_dequantize(source) else None
        if scale is not None and scale.size > 1:
            rewriter.remark(node, _ABORTS, "infer shapes first, or write its perm")
        return
    with rewriter.step("guard-transpose", node):
        rewriter.set_attribute(node, "perm", tuple(reversed(range(rank))))


def _move_sums(node: ir.Node, index: int, plan: Plan, rewriter: Rewriter) -> None:
    """Dequantize the int32 data of a movement, or of a product, as Cast and Mul.

    ONNX Runtime puts pairs of int32 around the movement, and there is no such QuantizeLinear. It
    also takes a Transpose to the other side of a Mul, so that the DequantizeLinear has to go. Of a
    product 1.23 makes one of codes, which refuses int32.
    """
    source = unmoved_sums(node, index)
    affine = None if source is None else plan.types.parameters(source.dequantize)
    if source is None or affine is None:
        return
    shape = _broadcast_shape(affine.scale, source.dequantize)
    codes, output = source.dequantize.inputs[0], source.dequantize.outputs[0]
    if shape is None or codes is None or not affine.symmetric:
        return
    anchor, name = source.reader, f"{output.name}_guarded"
    with rewriter.step("guard-sums", node):
        real = rewriter.insert(
            anchor,
            "Cast",
            [codes],
            name=name,
            attributes={"to": int(ir.DataType.FLOAT)},
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
        scale = rewriter.constant(anchor, affine.scale.reshape(shape), name=f"{name}_scale")
        scaled = rewriter.insert(
            anchor,
            "Mul",
            [real, scale],
            name=f"{name}_mul",
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
        )
        rewriter.set_input(anchor, source.index, scaled)
    _erase_unread(source.dequantize, rewriter)


def _erase_unread(node: ir.Node, rewriter: Rewriter) -> None:
    if any(each.uses() or each.is_graph_output() for each in node.outputs):
        return
    with rewriter.step("remove-replaced", node):
        rewriter.erase(node)


def _pair_after(node: ir.Node, plan: Plan, rewriter: Rewriter) -> None:
    """Put a Q/DQ pair of the data's type behind a movement of dequantized int8 codes.

    ONNX Runtime does, but then makes the codes uint8 and leaves output_dtype int8, and refuses
    the model it made.
    """
    output = node.outputs[0]
    dequantize = _int8_source(node, plan, rewriter)
    is_rounded = all(is_quantize(use.node) for use in output.uses())
    if dequantize is None or (is_rounded and not output.is_graph_output()):
        return
    parameters = dequantize.inputs[1:]
    with rewriter.step("guard-movement", node):
        codes = rewriter.insert(
            node,
            QUANTIZE,
            [output, *parameters],
            name=f"{output.name}_codes",
            attributes=PAIR_ATTRIBUTES,
            dtype=ir.DataType.INT8,
            shape=output.shape,
            after=True,
        )
        quantize = codes.producer()
        assert quantize is not None
        real = rewriter.insert(
            quantize,
            DEQUANTIZE,
            [codes, *parameters],
            name=f"{output.name}_rounded",
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
            after=True,
        )
        rewriter.replace_value(output, real, keep=[quantize])


def _int8_source(node: ir.Node, plan: Plan, rewriter: Rewriter) -> ir.Node | None:
    """The DequantizeLinear of int8 data of ``node``, where pairs made around it are wrong."""
    source = unmoved_source(node)
    if rewriter.opset(node) < _PAIRS_HAVE_TYPES or source is None:
        return None
    affine = plan.types.parameters(source.dequantize)
    if affine is None or not affine.per_tensor or affine.dtype != ir.DataType.INT8:
        return None
    return source.dequantize


def _codes(codes: Array | None) -> Array:
    assert codes is not None
    return codes


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)
