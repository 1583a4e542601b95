"""LSTMs with quantized weights on ONNX Runtime's kernel that quantizes their data at every step.

Microseconds of CPU time, medians of 15 interleaved runs on one thread, onnxruntime 1.32.0 on x86-64
with AVX512-VNNI; steps, batch, inputs and hidden units in front:

    steps    weights dequantized   dequantized at every run   DynamicQuantizeLSTM
    20x1, 32, 32              18                         22                    19
    200x1, 40, 64            220                        254                   134
    50x1, 256, 256          1043                       1405                   408
    50x8, 256, 256          4610                       6362                  1767
    30x1, 512, 512          2792                       4201                   875
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.types import TypeState, is_dequantize
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_CONTRIB = "com.microsoft"
_INPUTS = 8  # X, W, R, B, sequence_lens, initial_h, initial_c, P; scales and zero points follow
_WEIGHTS = (1, 2)
_MIDDLE = 128  # the one zero point of uint8 weights with a scale a unit that the kernel takes
_AT_EVERY_STEP = "its data and its state are quantized anew at every step"


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights as the kernel takes them.

    Attributes:
        codes: 8 bits, [directions, inputs, 4 hidden].
        scale: float32, [directions] or [directions, 4 hidden].
        zero_point: Shaped like ``scale``.
        dequantize: The node that they came from.
    """

    codes: Array
    scale: Array
    zero_point: Array
    dequantize: ir.Node


@rule("quantize-lstm", "LSTM")
def _quantize(node: ir.Node, rewriter: Rewriter) -> None:
    found = [_weights(node.inputs[index]) for index in _WEIGHTS]
    w, r = found
    if w is None or r is None or w.codes.dtype != r.codes.dtype:
        return
    if node.attributes.get_int("layout", 0) or any(each.is_ref() for each in _attributes(node)):
        return
    name = node.outputs[0].name or "lstm"
    inputs = [*node.inputs, *[None] * (_INPUTS - len(node.inputs))]
    for index, weights in zip(_WEIGHTS, (w, r), strict=True):
        rewriter.add_source(weights.dequantize)
        inputs[index] = rewriter.constant(node, weights.codes, name=f"{name}_weights")
        inputs.append(rewriter.constant(node, weights.scale, name="scale"))
        inputs.append(rewriter.constant(node, weights.zero_point, name="zero_point"))
    attributes = {each.name: each for each in _attributes(node) if each.name != "layout"}
    quantized = rewriter.insert_node(
        node,
        "DynamicQuantizeLSTM",
        inputs,
        name=name,
        attributes=attributes,
        domain=_CONTRIB,
        outputs=len(node.outputs),
    )
    for old, new in zip(node.outputs, quantized.outputs, strict=True):
        if old.dtype is not None:
            rewriter.set_type(new, old.dtype, old.shape)
    rewriter.remark(quantized, _AT_EVERY_STEP)
    rewriter.replace_node(node, quantized.outputs)
    for weights in (w, r):
        output = weights.dequantize.outputs[0]
        if weights.dequantize.graph is not None and not use_count(output):
            rewriter.erase(weights.dequantize)


@dataclass(frozen=True)
class QuantizeLstm(PatternPass):
    """Write LSTMs with constant 8-bit weights as DynamicQuantizeLSTM, with the same weights.

    That kernel of ONNX Runtime rounds data and state to 8 bits at every step, by scales that it
    finds at run time. GRU and RNN have no such kernel.
    """

    name: ClassVar[str] = "quantize-lstm"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_quantize,)


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return list(node.attributes.values())


def _weights(value: ir.Value | None) -> _Weights | None:
    """The codes behind a DequantizeLinear; None where the kernel does not take them."""
    node = None if value is None else value.producer()
    if node is None or value is None or value.is_graph_output() or not is_dequantize(node):
        return None
    affine, codes = TypeState(recode=False).parameters(node), constant_array(node.inputs[0])
    if (
        affine is None
        or codes is None
        or codes.ndim != 3
        or codes.dtype.name not in ("int8", "uint8")
    ):
        return None
    shape = codes.shape[: 1 if affine.per_tensor else 2]
    if affine.axis not in (None, 1) or (affine.axis == 1 and affine.scale.size != codes.shape[1]):
        return None
    zero_point: Array = np.array(np.broadcast_to(affine.zero_point, shape), codes.dtype)
    middle = 0 if codes.dtype == np.int8 else _MIDDLE
    if not affine.per_tensor and bool(np.any(zero_point != middle)):
        return None
    scale: Array = np.array(np.broadcast_to(affine.scale, shape), np.float32)
    turned = np.ascontiguousarray(np.swapaxes(codes, 1, 2))
    return _Weights(turned, scale, zero_point, node)
