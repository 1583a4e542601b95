"""Evaluates single nodes at compile time: exactly, within a size limit, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxfold.passes.constants import Array
from onnxfold.passes.kernel_call import ArrayLike, Call, NotFoldableError
from onnxfold.passes.kernels import KERNELS

_REFERENCE_OPS = frozenset(
    {
        "DepthToSpace",
        "EyeLike",
        "GatherElements",
        "ScatterElements",
        "ScatterND",
        "SpaceToDepth",
    }
)
"""Data movement that onnx's ReferenceEvaluator computes exactly; results as large as inputs."""


def can_evaluate(node: ir.Node) -> bool:
    """Whether ``node`` is of a kind that ``evaluate`` computes, given constant inputs."""
    if node.domain or not (node.op_type in KERNELS or node.op_type in _REFERENCE_OPS):
        return False
    return not any(attribute.is_ref() for attribute in node.attributes.values())


def evaluate(
    node: ir.Node, opset: int, inputs: Sequence[Array | None], max_bytes: int
) -> tuple[Array, ...] | None:
    """The outputs of ``node`` on constant ``inputs``, bit for bit as ONNX Runtime computes them.

    Args:
        node: A node for which ``can_evaluate`` holds.
        opset: The version of ai.onnx it is read under.
        inputs: One array per input; None where an optional input is absent.
        max_bytes: Largest output allowed; decided before anything of that size is made.

    Returns:
        One array per output; None where the result is too large, not exactly defined, or where
        evaluation fails (the node is then left for the runtime to reject).
    """
    call = Call(node.op_type, opset, inputs, node.attributes, len(node.outputs), max_bytes)
    kernel = KERNELS.get(node.op_type) or _reference_kernel(node)
    try:
        result = kernel(call)
    except (NotFoldableError, ValueError, IndexError, TypeError, OverflowError, AttributeError):
        return None
    outputs = result if isinstance(result, tuple) else (result,)
    if len(outputs) != len(node.outputs):
        return None
    return tuple(np.ascontiguousarray(each).reshape(np.shape(each)) for each in outputs)


def _reference_kernel(node: ir.Node) -> Callable[[Call], tuple[ArrayLike, ...]]:
    def kernel(call: Call) -> tuple[ArrayLike, ...]:
        arrays = [array for array in call.inputs if array is not None]
        if len(arrays) != len(call.inputs) or call.attribute("reduction", "none") != "none":
            raise NotFoldableError
        call.reserve([max(array.size for array in arrays)], arrays[0].dtype)
        return _run_reference(node, call, arrays)

    return kernel


def _run_reference(node: ir.Node, call: Call, arrays: Sequence[Array]) -> tuple[Any, ...]:
    names = [f"input_{index}" for index in range(len(arrays))]
    proto = onnx.NodeProto(op_type=node.op_type, input=names, output=["output"])
    proto.attribute.extend(ir.serde.serialize_attribute(each) for each in node.attributes.values())
    inputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = onnx.helper.make_graph([proto], "node", inputs, [onnx.ValueInfoProto(name="output")])
    opsets = [onnx.helper.make_opsetid("", call.opset)]
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
    results = evaluator.run(None, dict(zip(names, arrays, strict=True)))
    return tuple(cast("list[Any]", results))
