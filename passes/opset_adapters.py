"""What changed in ai.onnx between opset 7 and 21, and how a node follows.

Versions that only widened types or added attributes whose defaults keep the old meaning need no
adapter. Source: the operator schemas with their history in ``onnx.defs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

BREAKING = frozenset({("Scan", 9), ("GroupNormalization", 21)})
"""(operator, version) whose meaning changed and that no adapter carries over."""


@dataclass(frozen=True)
class Adapter:
    """Carries a node over one version.

    Attributes:
        adapt: Rewrites the node, inside a step.
        refuses: Why the node cannot be carried over; empty if it can. Mutates nothing.
    """

    adapt: Callable[[ir.Node, Rewriter], None]
    refuses: Callable[[ir.Node], str]


def _replace(
    node: ir.Node,
    rewriter: Rewriter,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, ir.Attr],
) -> None:
    """Put one node of another kind in the place of a node with one output."""
    old = node.outputs[0]
    new = rewriter.insert(
        node, op_type, inputs, name=f"{old.name}_upgraded", attributes=attributes, dtype=old.dtype
    )
    rewriter.replace_node(node, [new])


def _to_inputs(
    node: ir.Node, rewriter: Rewriter, names: Sequence[str], dtype: npt.DTypeLike = np.int64
) -> None:
    """Turn attributes into constant inputs, from position 1 on."""
    for index, name in enumerate(names, start=1):
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        data: Array = np.array(attribute.value, dtype=dtype)
        value = rewriter.constant(node, data, name=f"{node.outputs[0].name}_{name}")
        rewriter.set_attribute(node, name, None)
        rewriter.set_input(node, index, value)


def _moved(*names: str) -> Adapter:
    def adapt(node: ir.Node, rewriter: Rewriter) -> None:
        _to_inputs(node, rewriter, names)

    return Adapter(adapt, _needs_values(*names))


def _needs_values(*names: str) -> Callable[[ir.Node], str]:
    def refuses(node: ir.Node) -> str:
        for name in names:
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.is_ref():
                return f"the attribute {name} is a parameter of a local function"
        return ""

    return refuses


def _needs_dtype(*names: str) -> Callable[[ir.Node], str]:
    def refuses(node: ir.Node) -> str:
        problem = _needs_values(*names)(node)
        if not problem and any(name in node.attributes for name in names):
            known = node.inputs[0] is not None and node.inputs[0].dtype is not None
            return "" if known else "its element type is not known: run infer-shapes before"
        return problem

    return refuses


def _scalar_inputs(node: ir.Node, rewriter: Rewriter, names: dict[str, int]) -> None:
    """Turn float attributes into scalar inputs of the type of input 0, at given positions."""
    source = node.inputs[0]
    if source is None or source.dtype is None:
        return
    for name, index in names.items():
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        data = np.array(attribute.as_float(), dtype=source.dtype.numpy())
        value = rewriter.constant(node, data, name=f"{node.outputs[0].name}_{name}")
        rewriter.set_attribute(node, name, None)
        rewriter.set_input(node, index, value)


def _clip_11(node: ir.Node, rewriter: Rewriter) -> None:
    _scalar_inputs(node, rewriter, {"min": 1, "max": 2})


def _pad_11(node: ir.Node, rewriter: Rewriter) -> None:
    _to_inputs(node, rewriter, ["pads"])
    _scalar_inputs(node, rewriter, {"value": 2})


def _top_k_10(node: ir.Node, rewriter: Rewriter) -> None:
    k = np.array([node.attributes["k"].as_int()], dtype=np.int64)
    rewriter.set_attribute(node, "k", None)
    rewriter.set_input(node, 1, rewriter.constant(node, k, name=f"{node.outputs[0].name}_k"))


def _dropout_10_refuses(node: ir.Node) -> str:
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    used = mask is not None and (use_count(mask) or mask.is_graph_output())
    return "its mask is used, and became boolean" if used else ""


def _nothing(node: ir.Node, rewriter: Rewriter) -> None:
    """The node may stay as it is, if it is not refused."""


def _dropout_12(node: ir.Node, rewriter: Rewriter) -> None:
    _to_inputs(node, rewriter, ["ratio"], np.float32)


def _batch_norm_9_refuses(node: ir.Node) -> str:
    spatial = node.attributes.get("spatial")
    kept = spatial is None or (not spatial.is_ref() and spatial.as_int() == 1)
    return "" if kept else "spatial=0 (a mean per position) no longer exists"


def _batch_norm_9(node: ir.Node, rewriter: Rewriter) -> None:
    if "spatial" in node.attributes:
        rewriter.set_attribute(node, "spatial", None)


def _batch_norm_14_refuses(node: ir.Node) -> str:
    training = any(use_count(each) or each.is_graph_output() for each in node.outputs[1:])
    return "its training outputs are used" if training else ""


def _batch_norm_14(node: ir.Node, rewriter: Rewriter) -> None:
    if len(node.outputs) > 1:
        rewriter.truncate_outputs(node, 1)


def _softmax_13(node: ir.Node, rewriter: Rewriter) -> None:
    """Softmax over all axes from ``axis`` on becomes Softmax over one axis."""
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None else attribute.as_int()
    source, output = node.inputs[0], node.outputs[0]
    last = ir.AttrInt64("axis", -1)
    rank = None if source is None or source.shape is None else len(source.shape)
    if axis == -1 or (rank is not None and axis == rank - 1):
        rewriter.set_attribute(node, "axis", last)
        return
    flat = rewriter.insert(
        node,
        "Flatten",
        [source],
        name=f"{output.name}_flat",
        attributes={"axis": axis},
        dtype=output.dtype,
    )
    soft = rewriter.insert(
        node,
        node.op_type,
        [flat],
        name=f"{output.name}_rows",
        attributes={"axis": last},
        dtype=output.dtype,
    )
    shape = rewriter.insert(
        node, "Shape", [source], name=f"{output.name}_shape", dtype=ir.DataType.INT64
    )
    _replace(node, rewriter, "Reshape", [soft, shape], {})


def _upsample_9(node: ir.Node, rewriter: Rewriter) -> None:
    _to_inputs(node, rewriter, ["scales"], np.float32)


def _upsample_10(node: ir.Node, rewriter: Rewriter) -> None:
    _replace(node, rewriter, "Resize", node.inputs, dict(node.attributes))


def _is_nearest(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    return mode is None or mode.as_string() == "nearest"


def _resize_11_refuses(node: ir.Node) -> str:
    if "mode" in node.attributes and node.attributes["mode"].is_ref():
        return "the attribute mode is a parameter of a local function"
    scales = _scales(node)
    if scales is None:
        return "its scales are not constant" if _is_nearest(node) else ""
    if _is_nearest(node) and np.any(scales > 1) and np.any(scales < 1):
        return "it enlarges along one axis and reduces along another"
    return ""


def _scales(node: ir.Node) -> Array | None:
    attribute = node.attributes.get("scales")
    if attribute is not None and not attribute.is_ref():
        return np.array(attribute.as_floats(), dtype=np.float32)
    return constant_array(node.inputs[1]) if len(node.inputs) > 1 else None


def _resize_11(node: ir.Node, rewriter: Rewriter) -> None:
    scales = node.inputs[1]
    values = constant_array(scales)
    roi = rewriter.constant(node, np.zeros(0, np.float32), name=f"{node.outputs[0].name}_roi")
    rewriter.set_input(node, 1, roi)
    rewriter.set_input(node, 2, scales)
    rewriter.set_attribute(node, "coordinate_transformation_mode", "asymmetric")
    if _is_nearest(node):
        # ONNX Runtime rounds down where it enlarges and up where it reduces, before opset 11.
        reduces = values is not None and bool(np.any(values < 1))
        rewriter.set_attribute(node, "nearest_mode", "ceil" if reduces else "floor")


def _scatter_11(node: ir.Node, rewriter: Rewriter) -> None:
    _replace(node, rewriter, "ScatterElements", node.inputs, dict(node.attributes))


def _roi_align_16(node: ir.Node, rewriter: Rewriter) -> None:
    rewriter.set_attribute(node, "coordinate_transformation_mode", "output_half_pixel")


def _split_18(node: ir.Node, rewriter: Rewriter) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        rewriter.set_attribute(node, "num_outputs", len(node.outputs))


def _grid_sample_20(node: ir.Node, rewriter: Rewriter) -> None:
    mode = node.attributes.get("mode")
    if mode is not None:
        renamed = {"bilinear": "linear", "bicubic": "cubic"}
        rewriter.set_attribute(node, "mode", renamed.get(mode.as_string(), mode.as_string()))


def _dft_20(node: ir.Node, rewriter: Rewriter) -> None:
    attribute = node.attributes.get("axis")
    axis = np.array(1 if attribute is None else attribute.as_int(), dtype=np.int64)
    rewriter.set_attribute(node, "axis", None)
    rewriter.set_input(node, 2, rewriter.constant(node, axis, name=f"{node.outputs[0].name}_axis"))


_REDUCTIONS_18 = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)
_SOFTMAX_13 = Adapter(_softmax_13, _needs_values("axis"))
_AXES_TO_INPUT = _moved("axes")

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 9): Adapter(_batch_norm_9, _batch_norm_9_refuses),
    ("BatchNormalization", 14): Adapter(_batch_norm_14, _batch_norm_14_refuses),
    ("Clip", 11): Adapter(_clip_11, _needs_dtype("min", "max")),
    ("DFT", 20): Adapter(_dft_20, _needs_values("axis")),
    ("Dropout", 10): Adapter(_nothing, _dropout_10_refuses),
    ("Dropout", 12): Adapter(_dropout_12, _needs_values("ratio")),
    ("GridSample", 20): Adapter(_grid_sample_20, _needs_values("mode")),
    ("Hardmax", 13): _SOFTMAX_13,
    ("LogSoftmax", 13): _SOFTMAX_13,
    ("Pad", 11): Adapter(_pad_11, _needs_dtype("pads", "value")),
    ("ReduceSum", 13): _AXES_TO_INPUT,
    ("Resize", 11): Adapter(_resize_11, _resize_11_refuses),
    ("RoiAlign", 16): Adapter(_roi_align_16, _needs_values()),
    ("Scatter", 11): Adapter(_scatter_11, _needs_values()),
    ("Slice", 10): _moved("starts", "ends", "axes"),
    ("Softmax", 13): _SOFTMAX_13,
    ("Split", 13): _moved("split"),
    ("Split", 18): Adapter(_split_18, _needs_values()),
    ("Squeeze", 13): _AXES_TO_INPUT,
    ("TopK", 10): Adapter(_top_k_10, _needs_values("k")),
    ("Unsqueeze", 13): _AXES_TO_INPUT,
    ("Upsample", 9): Adapter(_upsample_9, _needs_values("scales")),
    ("Upsample", 10): Adapter(_upsample_10, _needs_values("mode")),
    **{(op_type, 18): _AXES_TO_INPUT for op_type in _REDUCTIONS_18},
}
"""(operator, version) -> how nodes of the previous version become nodes of this one."""
