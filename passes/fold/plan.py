"""The plan of a fold: what each node becomes, decided for the whole model before any change."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.accumulate import accumulator_type, residual_bias
from onnxfold.passes.fold.lowering import (
    Alias,
    Dequantize,
    Joined,
    Linear,
    Lowering,
    Move,
    Operand,
    Quantize,
    Refusal,
    Requantize,
)
from onnxfold.passes.fold.rules import CODE_RULES, RULES
from onnxfold.passes.fold.rules.code_clips import clip_codes, clip_constant
from onnxfold.passes.fold.rules.constants import move_constant
from onnxfold.passes.fold.rules.curves import quantized_curve
from onnxfold.passes.fold.rules.functions import quantized_function
from onnxfold.passes.fold.rules.refusals import touches_quantization
from onnxfold.passes.fold.rules.sums import quantized_sum
from onnxfold.passes.fold.targets.products import channel_shape
from onnxfold.passes.fold.targets.target import Target
from onnxfold.passes.fold.types import (
    Quantized,
    TypeState,
    is_dequantize,
    is_parametric,
    is_quantize,
    widened,
)
from onnxfold.passes.fold.wants import find_wants
from onnxfold.passes.walk import Scopes, all_graphs

OLDEST_OPSET = 13
"""The first with per-channel scales, and uint8 kernels of Clip and Pad; earlier ones stay float."""


@dataclass
class Plan:
    """What each node becomes.

    Attributes:
        types: The affine types.
        graphs: All graphs, outer before inner.
        order: All nodes; outer graphs before inner ones, producers before consumers.
        lowerings: What covers each node that is lowered.
        refusals: Why nodes that touch quantized values stay float.
        needs_codes: Values whose codes something reads.
        needs_plain: Values something reads as they are.
        rounded: Values whose codes stand for them only after the rounding all readers do.
        again: Whether another fold may do more: readers go, and those left may agree on a type.
    """

    types: TypeState
    graphs: tuple[ir.Graph, ...]
    order: list[ir.Node]
    lowerings: dict[ir.Node, Lowering] = field(default_factory=dict[ir.Node, Lowering])
    refusals: dict[ir.Node, Refusal] = field(default_factory=dict[ir.Node, Refusal])
    needs_codes: set[ir.Value] = field(default_factory=set[ir.Value])
    needs_plain: set[ir.Value] = field(default_factory=set[ir.Value])
    rounded: set[ir.Value] = field(default_factory=set[ir.Value])
    again: bool = False


def make_plan(model: ir.Model, scopes: Scopes, target: Target) -> Plan:
    """Decide what every node of ``model`` becomes; nothing is changed.

    Args:
        model: The model.
        scopes: Its scopes, for opsets.
        target: How codes are held, and what is declined.
    """
    types = TypeState(recode=target.recode, wide=target.wide)
    graphs = tuple(all_graphs(model))
    find_wants(graphs, types)
    plan = Plan(types, graphs, [node for graph in graphs for node in graph])
    constant = {node for node in plan.order if _follow_constant(node, types)}
    for node in plan.order:
        if node not in plan.lowerings and node not in constant:
            _decide(node, plan, scopes, target)
    for node in reversed(plan.order):
        _demand(node, plan)
    plan.again = _lose_readers(plan)
    return plan


def _follow_constant(node: ir.Node, types: TypeState) -> bool:
    """Record the codes of ``node``'s output if they are known at compile time.

    Done before anything is decided: a bias may be written down after the op it is added to.
    """
    if is_parametric(node):
        return False
    if is_quantize(node):
        return _quantize_constant(node, types)
    if is_dequantize(node):
        return _dequantize_constant(node, types)
    return clip_constant(node, types) or move_constant(node, types)


def _quantize_constant(node: ir.Node, types: TypeState) -> bool:
    affine, constant = types.parameters(node), constant_array(node.inputs[0])
    known = types.get(node.inputs[0])
    if known is not None and known.codes is not None:
        constant = known.type.dequantize(known.codes)
    if affine is None or constant is None or constant.dtype.kind != "f":
        return False
    codes = types.internal_codes(affine.quantize(constant), affine.dtype)
    types.put(node.outputs[0], Quantized(types.internal(affine), codes))
    return True


def _dequantize_constant(node: ir.Node, types: TypeState) -> bool:
    affine, source = types.parameters(node), node.inputs[0]
    if affine is None or source is None:
        return False
    known, constant = types.get(source), constant_array(source)
    if constant is None:
        constant = types.moved.get(source)
    if known is not None and known.codes is not None:
        types.put(node.outputs[0], Quantized(types.internal(affine), known.codes))
        return True
    if constant is None or constant.dtype.kind == "f":
        return False
    # Narrow codes are read as 8-bit codes: `parameters` widened the type likewise.
    codes = widened(constant, source.dtype or ir.DataType.from_numpy(constant.dtype))
    codes = types.internal_codes(codes, affine.dtype)
    types.put(node.outputs[0], Quantized(types.internal(affine), codes))
    return True


def _decide(node: ir.Node, plan: Plan, scopes: Scopes, target: Target) -> None:
    """Apply the rule of ``node``, in the forward sweep."""
    if node.graph is not None and scopes.opset(node.graph) < OLDEST_OPSET:
        if touches_quantization(node, plan.types):
            plan.refusals[node] = Refusal(
                f"before opset {OLDEST_OPSET} few ops have integer kernels", "upgrade the opset"
            )
        return
    decision = _rounded_here(node, plan, target) or _decision(node, plan.types)
    if isinstance(decision, Lowering):
        declined = target.decline(decision)
        if declined is not None:
            plan.types.forget(decision.node.outputs)
            left = [each for each in decision.covered if each not in plan.lowerings]
            plan.refusals.update(dict.fromkeys(left, declined))
            decision = declined
    if isinstance(decision, Refusal):
        plan.refusals[node] = decision
    elif decision is not None:
        _take(decision, plan)
        if target.accumulates and isinstance(decision, Linear) and decision.type is None:
            _accumulate(decision, plan.types)


def _rounded_here(node: ir.Node, plan: Plan, target: Target) -> Lowering | None:
    """What is computed up to a QuantizeLinear whose input others round otherwise, or not."""
    types, output = plan.types, node.outputs[0]
    if not is_quantize(node) or types.get(node.inputs[0]) is not None:
        return None
    affine = types.parameters(node)
    if affine is None or not types.takes(affine):
        return None
    internal = types.internal(affine)
    found = (
        quantized_function(node, internal, types)
        or quantized_sum(node, internal, types)
        or quantized_curve(node, internal, types)
    )
    if found is None or target.decline(found) is not None:
        return None
    types.put(output, Quantized(internal))
    types.code_dtypes[output] = affine.dtype
    return found


def _accumulate(linear: Linear, types: TypeState) -> None:
    """Let all that quantizes an unrounded product read its int32 accumulator."""
    unit, residual = accumulator_type(linear), residual_bias(linear)
    if unit is not None:
        types.put(linear.output, Quantized(types.intern(unit)))
        types.reaches[linear.output] = linear.bound
        if residual is not None:
            types.residuals[linear.output] = residual.reshape(channel_shape(linear, residual))
        types.refuse(linear.output, f"'{linear.output.name}' is an unrounded product")


def _take(lowering: Lowering, plan: Plan) -> None:
    plan.lowerings.update(dict.fromkeys(lowering.covered, lowering))
    bounds = plan.types.bounds
    if _keeps_codes(lowering) and lowering.reads and lowering.reads[0] in bounds:
        bounds.update(dict.fromkeys(lowering.node.outputs, bounds[lowering.reads[0]]))
    for each in lowering.covered:
        plan.refusals.pop(each, None)
    if _rounds(lowering, plan):
        outputs = lowering.node.outputs
        plan.rounded.update(each for each in outputs if plan.types.get(each) is not None)


def _keeps_codes(lowering: Lowering) -> bool:
    """Whether the result has no codes that its data has not."""
    if isinstance(lowering, Move):
        return not lowering.constants
    return isinstance(lowering, Alias | Quantize | Dequantize)


def _rounds(lowering: Lowering, plan: Plan) -> bool:
    """Whether the codes of the outputs are rounded where the original is not yet."""
    if isinstance(lowering, Quantize | Requantize | Dequantize) or is_quantize(lowering.node):
        return False
    return not lowering.exact or any(value in plan.rounded for value in lowering.reads)


def _decision(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    if is_quantize(node):
        return _quantize(node, types)
    if is_dequantize(node):
        return _dequantize(node, types)
    if is_parametric(node):
        return _parametric(node, types)
    if any(value in types.code_dtypes for value in node.inputs):
        return _on_codes(node, types)
    rule = RULES.get(node.op_type) if not node.domain else None
    if rule is not None:
        return rule(node, types)
    if not touches_quantization(node, types):
        return None
    return Refusal(f"there is no integer rule for {node.op_type}")


def _parametric(node: ir.Node, types: TypeState) -> Refusal | None:
    if not touches_quantization(node, types):
        return None
    return Refusal("its attributes are parameters of a local function", "inline the function")


def _on_codes(node: ir.Node, types: TypeState) -> Lowering | None:
    """An op on codes between QuantizeLinear and DequantizeLinear: movement, and limits."""
    data = node.inputs[0]
    if node.domain or data not in types.code_dtypes:
        return None
    if node.op_type != "Clip" and node.op_type not in CODE_RULES:
        return None
    decision = (clip_codes if node.op_type == "Clip" else RULES[node.op_type])(node, types)
    if not isinstance(decision, Lowering):
        return None
    moved = [output for output in node.outputs if types.get(output) is not None]
    types.code_dtypes.update(dict.fromkeys(moved, types.code_dtypes[data]))
    return decision


def _quantize(node: ir.Node, types: TypeState) -> Lowering | None:
    source, output = node.inputs[0], node.outputs[0]
    affine = types.parameters(node)
    if source is None or affine is None or not types.takes(affine):
        return None
    internal = types.internal(affine)
    types.put(output, Quantized(internal))
    types.code_dtypes[output] = affine.dtype
    known = types.accumulator(source) or types.activation(source)
    if known is not None and known is not internal:
        return Requantize(
            node=node,
            reads=(source,),
            covered=(node,),
            operand=Operand(known, source),
            residual=types.residuals.get(source),
            type=internal,
        )
    return Quantize(
        node=node,
        reads=() if known is None else (source,),
        plain=(source,) if known is None else (),
        covered=(node,),
        type=affine,
        internal=internal,
    )


def _dequantize(node: ir.Node, types: TypeState) -> Lowering | None:
    source, output = node.inputs[0], node.outputs[0]
    affine = types.parameters(node)
    if source is None:
        return None
    if affine is None:
        types.refuse(
            output, f"the scale of '{output.name}' is blocked, not constant, or not float32"
        )
        return None
    if not types.takes(affine):
        kind = "per channel" if affine.dtype.bitwidth == 8 else f"of type {affine.dtype.name}"
        types.refuse(output, f"'{output.name}' is quantized {kind}, which no integer kernel takes")
        return None
    internal = types.internal(affine)
    types.put(output, Quantized(internal))
    computed = types.get(source) is not None
    return Dequantize(
        node=node,
        reads=(source,) if computed else (),
        plain=() if computed else (source,),
        covered=(node,),
        type=affine,
        internal=internal,
    )


def _demand(node: ir.Node, plan: Plan) -> None:
    """Pass on, in the backward sweep, who needs codes and who needs plain values."""
    for output in node.outputs:
        if output.is_graph_output():
            plan.needs_plain.add(output)
    lowering = plan.lowerings.get(node)
    if lowering is not None and lowering.node is not node:
        return
    if not _is_needed(node, plan):
        return
    if lowering is None:
        plan.needs_plain.update(value for value in node.inputs if value is not None)
        return
    codes_needed = any(output in plan.needs_codes for output in node.outputs)
    if not codes_needed and _stays_plain(lowering, plan):
        for covered in lowering.covered:
            del plan.lowerings[covered]
        for covered in lowering.covered:
            plan.needs_plain.update(value for value in covered.inputs if value is not None)
        return
    plan.needs_codes.update(lowering.reads)
    plan.needs_plain.update(lowering.plain)


def _stays_plain(lowering: Lowering, plan: Plan) -> bool:
    """Whether a node nobody needs the codes of is better left as it is."""
    if isinstance(lowering, Dequantize):
        return not lowering.reads or lowering.type is lowering.internal
    if any(output in plan.rounded for output in lowering.node.outputs):
        return True
    if not isinstance(lowering, Move | Alias):
        return False
    if not plan.types.recode:
        return True
    if any(plan.types.get(output) is None for output in lowering.node.outputs):
        return False
    return any(
        value.is_graph_output() or any(_reads_plain(use.node, plan) for use in value.uses())
        for value in lowering.reads
    )


def _is_needed(node: ir.Node, plan: Plan) -> bool:
    """Whether what follows ``node`` reads any of its outputs."""
    return any(each in plan.needs_codes or each in plan.needs_plain for each in node.outputs)


def _reads_plain(node: ir.Node, plan: Plan) -> bool:
    """Whether ``node`` stays, and reads real numbers."""
    return node not in plan.lowerings and _is_needed(node, plan)


def _lose_readers(plan: Plan) -> bool:
    """Whether float ops stay that something reads no more, while something else does."""
    left = (node for node in plan.order if node not in plan.lowerings)
    values = (value for node in left for value in node.outputs if value in plan.needs_plain)
    return any(_lets_go(use.node, value, plan) for value in values for use in value.uses())


def _lets_go(node: ir.Node, value: ir.Value, plan: Plan) -> bool:
    """Whether ``node`` reads ``value``, a real number, no more, or only to round it."""
    lowering = plan.lowerings.get(node)
    if lowering is None:
        return not _is_needed(node, plan)
    if isinstance(lowering, Joined) and any(each.real is value for each in lowering.operands):
        return True
    return value not in lowering.plain
