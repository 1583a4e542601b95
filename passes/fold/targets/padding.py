"""Padding codes with the zero point in front of a convolution is the convolution's own padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints, constant_scalar
from onnxfold.passes.fold.lowering import Linear
from onnxfold.passes.literals import AttributeValue

_SPATIAL = 2  # batch and channels come first


def merge_padding(
    linear: Linear, codes: ir.Value
) -> tuple[ir.Value, Mapping[str, AttributeValue | ir.Attr]]:
    """Let the convolution pad instead of a Pad that wrote ``codes``.

    Returns:
        The codes to convolve, and the attributes of the convolution.
    """
    attributes = linear.operator.attributes
    pad = codes.producer()
    if pad is None or pad.op_type != "Pad" or pad.inputs[0] is None:
        return codes, attributes
    added = _spatial_pads(pad)
    if added is None or not _fills_with_zero_point(pad, linear):
        return codes, attributes
    if attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return codes, attributes
    own = attributes.get_ints("pads", ()) or [0] * len(added)
    if attributes.get_string("auto_pad", "NOTSET") == "VALID":
        own = [0] * len(added)
    pads = [mine + extra for mine, extra in zip(own, added, strict=True)]
    kept = {key: value for key, value in attributes.items() if key != "auto_pad"}
    return pad.inputs[0], {**kept, "pads": pads}


def _spatial_pads(pad: ir.Node) -> Sequence[int] | None:
    """Its pads in the order of Conv's; None where it does more than pad the axes of an image."""
    pads = constant_ints(pad.inputs[1])
    if pads is None or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    rank = len(pads) // 2
    begins, ends = pads[:rank], pads[rank:]
    if min(pads) < 0 or any((*begins[:_SPATIAL], *ends[:_SPATIAL])):
        return None
    return [*begins[_SPATIAL:], *ends[_SPATIAL:]]


def _fills_with_zero_point(pad: ir.Node, linear: Linear) -> bool:
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    number = 0.0 if fill is None else constant_scalar(fill)
    return number is not None and number == float(linear.x.type.zero_point)
