"""Which codes ONNX Runtime holds channels-last, where its integer MaxPool is fast.

It turns QLinearConv to channels-last and pushes the Transposes through what follows; where they
meet those of another convolution on all inputs, they vanish. Found by looking at the graphs that
onnxruntime 1.23 and 1.32 execute.
"""

from __future__ import annotations

import onnx_ir as ir

_TURNED = "QLinearConv"
_CARRIERS = frozenset({"Concat", "MaxPool", "QLinearAdd", "QLinearConcat", "QLinearMul"})


def is_channels_last(codes: ir.Value) -> bool:
    """Whether ``codes`` come from convolutions alone, through ops that keep their layout."""
    pending, seen = [codes], {codes}
    while pending:
        producer = pending.pop().producer()
        if producer is None:
            return False
        if producer.op_type == _TURNED:
            continue
        if producer.op_type not in _CARRIERS:
            return False
        for value in producer.inputs:
            if value is not None and value not in seen and not value.is_initializer():
                seen.add(value)
                pending.append(value)
    return True
