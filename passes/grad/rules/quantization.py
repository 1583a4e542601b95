"""Gradients of quantization: straight through, with learned step sizes.

A pair of QuantizeLinear and DequantizeLinear passes the gradient on where the value lies inside
the range of the codes, and nothing outside. The gradient of the scale is that of learned step size
quantization (Esser et al. 2020): ``round(x / s) - x / s`` inside, the distance of the nearest
limit from the zero point outside; ``lower-gradient{steps=normalized}`` divides it as they do.
Codes and zero points are integers and have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS
from onnxfold.passes.constants import constant_array
from onnxfold.passes.grad.builder import Builder, rank_of, static_dims
from onnxfold.passes.grad.quantized_paths import QuantizedPath, moved_inputs, quantized_path
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("DequantizeLinear", "com.microsoft::DequantizeLinear")
def dequantize_linear(call: Call, b: Builder) -> Gradients:
    """D s (q - z): ds, and what flows straight through to what the codes were rounded from."""
    codes, scale = call.x(0), call.x(1)
    code_type = _code_type(codes, call.optional(2))
    if code_type not in INTEGER_LIMITS:
        raise call.refusal(f"codes of type {code_type} are not supported")
    gradient = b.cast(call.gradient, scale.dtype or ir.DataType.FLOAT)
    path = quantized_path(codes)
    rounded = [node for node in path.quantizers if _reads(node, call.captured)]
    steps = _steps(call, b) if call.needed[1] else None
    if rounded and not path.movement and _scale_of(rounded[0]) is scale:
        steps = _pair(call, rounded[0], gradient, steps, b)
    elif rounded:
        _flow_through(call, path, rounded, gradient, b)
    if steps is None:
        return ()
    return None, _scale_gradient(call, b.mul(gradient, steps), call.node, b)


def _steps(call: Call, b: Builder) -> ir.Value:
    """``q - z`` as real numbers."""
    one = b.full_like(call.x(1), 1.0)
    inputs = (call.x(0), one, call.optional(2))
    node = call.node
    (steps,) = b.nodes("DequantizeLinear", inputs, 1, domain=node.domain, **node.attributes)
    b.assume_like(steps, call.y())
    return steps


def _pair(
    call: Call, node: ir.Node, gradient: ir.Value, steps: ir.Value | None, b: Builder
) -> ir.Value | None:
    """Flow through a pair that shares its scale; the derivative by that, in one difference.

    Summed apart, its parts would be two large numbers that nearly cancel.
    """
    x = node.inputs[0]
    if x is None or node.op_type == "DynamicQuantizeLinear":
        _flow(call, x, gradient, b)
        return steps
    over = _over_elements(call.x(1), node, x, b)
    inside = _inside(node, x, over, b)
    zero = b.number(0.0, gradient)
    if x in call.captured:
        _flow(call, x, b.where(inside, gradient, zero), b)
    return None if steps is None else b.sub(steps, b.where(inside, b.div(x, over), zero))


def _flow(call: Call, x: ir.Value | None, gradient: ir.Value, b: Builder) -> None:
    if x is not None and x in call.captured:
        call.flow(x, b.cast(gradient, x.dtype or ir.DataType.FLOAT))


def _reads(node: ir.Node, values: Sequence[ir.Value]) -> bool:
    return any(value in values for value in node.inputs)


def _flow_through(
    call: Call,
    path: QuantizedPath,
    rounded: list[ir.Node],
    gradient: ir.Value,
    b: Builder,
) -> None:
    """Give each real tensor behind the codes its gradient."""
    alike = all(_same_value(_scale_of(node), call.x(1)) for node in path.quantizers)
    if not alike:
        gradient = b.mul(gradient, _over_elements(call.x(1), call.node, call.x(0), b))
    for node, flow in _moved_back(call, path, rounded, gradient, b):
        x = node.inputs[0]
        if x is None or flow is None:
            continue
        scale = _scale_of(node)
        if node.op_type == "DynamicQuantizeLinear":
            _flow(call, x, flow if alike else b.div(flow, scale), b)
            continue
        over = _over_elements(scale, node, x, b)
        kept = b.where(_inside(node, x, over, b), flow, b.number(0.0, flow))
        kept = kept if alike else b.div(kept, over)
        _flow(call, x, kept, b)
        if scale in call.captured:
            # Of x / s; the other part is that of the scale that is multiplied by.
            product = b.neg(b.mul(kept, b.div(x, over)))
            call.flow(scale, _scale_gradient(call, product, node, b))


def _moved_back(
    call: Call, path: QuantizedPath, rounded: list[ir.Node], gradient: ir.Value, b: Builder
) -> list[tuple[ir.Node, ir.Value | None]]:
    """The gradient of what each quantizer gives, as if it were real.

    What hands the codes on is written once more for real tensors, and that is differentiated.
    """
    if not path.movement:
        return [(node, gradient) for node in rounded]
    twins: dict[ir.Value, ir.Value] = {}
    starts: list[ir.Value] = []
    for node in rounded:
        twin = b.op("Identity", node.inputs[0])
        twins[node.outputs[0]] = twin
        starts.append(twin)
    for node in path.movement:
        inputs = list(node.inputs)
        positions = {*moved_inputs(node), *({2} if node.op_type == "Pad" else ())}
        for index in positions & set(range(len(inputs))):
            inputs[index] = _twin(inputs[index], twins, gradient, b)
        outputs = b.nodes(
            node.op_type, inputs, len(node.outputs), domain=node.domain, **node.attributes
        )
        twins.update(zip(node.outputs, outputs, strict=True))
    seeds = {twins[call.x(0)]: gradient}
    found = call.differentiator.gradients(b, seeds, starts, until=starts)
    return list(zip(rounded, found, strict=True))


def _twin(
    value: ir.Value | None, twins: dict[ir.Value, ir.Value], like: ir.Value, b: Builder
) -> ir.Value | None:
    if value is None or value in twins:
        return value and twins[value]
    twins[value] = b.cast(value, like.dtype or ir.DataType.FLOAT)
    return twins[value]


def _scale_of(node: ir.Node) -> ir.Value:
    scale = node.outputs[1] if node.op_type == "DynamicQuantizeLinear" else node.inputs[1]
    assert scale is not None
    return scale


def _same_value(left: ir.Value, right: ir.Value) -> bool:
    if left is right:
        return True
    first, second = constant_array(left), constant_array(right)
    return first is not None and second is not None and np.array_equal(first, second)


def _inside(node: ir.Node, x: ir.Value, scale: ir.Value, b: Builder) -> ir.Value:
    """Whether ``x`` rounds to a code within the limits: half below an even limit still does."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    low, high = INTEGER_LIMITS[_code_type(node.outputs[0], zero)]
    lowest, highest = b.number(low - 0.5, scale), b.number(high + 0.5, scale)
    if zero is not None:
        real = _over_elements(b.cast(zero, scale.dtype or ir.DataType.FLOAT), node, x, b)
        lowest, highest = b.sub(lowest, real), b.sub(highest, real)
    above = b.op("GreaterOrEqual", x, b.mul(lowest, scale))
    return b.op("And", above, b.op("Less", x, b.mul(highest, scale)))


def _code_type(codes: ir.Value, zero: ir.Value | None) -> ir.DataType:
    """The type of codes; that of the zero point outside ai.onnx, where none is inferred."""
    known = codes.dtype or (None if zero is None else zero.dtype)
    return known or ir.DataType.UINT8


def _axis(node: ir.Node, rank: int) -> int:
    attribute = node.attributes.get("axis")
    return (1 if attribute is None else attribute.as_int()) % max(rank, 1)


def _block(node: ir.Node) -> int:
    attribute = node.attributes.get("block_size")
    return 0 if attribute is None else attribute.as_int()


def _over_elements(parameter: ir.Value, node: ir.Node, x: ir.Value, b: Builder) -> ir.Value:
    """A scale or zero point in a shape that broadcasts to the elements of ``x``."""
    rank, block = rank_of(x), _block(node)
    axis = _axis(node, rank)
    if rank_of(parameter) == 0 or static_dims(parameter) == (1,):
        return b.op("Reshape", parameter, b.ints()) if rank_of(parameter) else parameter
    if block:
        return b.op("Gather", parameter, _block_numbers(x, axis, block, b), axis=axis)
    return b.unsqueeze(parameter, *(each for each in range(rank) if each != axis))


def _block_numbers(x: ir.Value, axis: int, block: int, b: Builder) -> ir.Value:
    dims = x.shape
    known = None if dims is None else dims[axis]
    if isinstance(known, int):
        return b.constant(np.arange(known, dtype=np.int64) // block)
    size = b.op("Squeeze", b.dim(x, axis))
    zero, one = (b.constant(np.array(each, np.int64)) for each in (0, 1))
    return b.div(b.op("Range", zero, size, one), b.ints(block))


def _scale_gradient(call: Call, product: ir.Value, node: ir.Node, b: Builder) -> ir.Value:
    """The gradient of a scale from its part at each element; normalized where that is asked for."""
    scale = _scale_of(node)
    total = _sum_to_scale(product, node, b)
    if not call.differentiator.normalize_steps:
        return total
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    assert codes is not None
    _, high = INTEGER_LIMITS[_code_type(codes, node.inputs[2] if len(node.inputs) > 2 else None)]
    sizes = (
        b.cast(b.op("Size", each), scale.dtype or ir.DataType.FLOAT) for each in (codes, scale)
    )
    sharing = b.div(*sizes)
    return b.div(total, b.op("Sqrt", b.scale(sharing, float(high))))


def _sum_to_scale(product: ir.Value, node: ir.Node, b: Builder) -> ir.Value:
    """``product``, one number an element, summed over the elements that share a scale."""
    scale = _scale_of(node)
    rank, block = rank_of(product), _block(node)
    axis = _axis(node, rank)
    if rank_of(scale) == 0 or static_dims(scale) == (1,):
        return b.reshape_like(b.reduce_sum(product, *range(rank), keepdims=False), scale)
    if not block:
        others = [each for each in range(rank) if each != axis]
        return b.reshape_like(b.reduce_sum(product, *others, keepdims=False), scale)
    blocks = b.dim(scale, axis)
    missing = b.sub(b.mul(blocks, b.ints(block)), b.dim(product, axis))
    zeros = [b.ints(0)] * rank
    pads = b.op("Concat", *zeros, *zeros[:axis], missing, *zeros[axis + 1 :], axis=0)
    parts = [b.dim(product, each) for each in range(rank)]
    split = b.op("Concat", *parts[:axis], blocks, b.ints(block), *parts[axis + 1 :], axis=0)
    padded = b.op("Reshape", b.op("Pad", product, pads), split)
    return b.reshape_like(b.op("ReduceSum", padded, b.ints(axis + 1), keepdims=0), scale)
