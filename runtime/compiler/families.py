"""What kind of network a model is: it decides which schemes and compensations are worth trying."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.walk import all_nodes

Family = Literal["convolutional", "transformer", "recurrent", "dense"]
_Kind = Literal["recurrent", "convolution", "product"]

_RECURRENT = ("GRU", "LSTM", "RNN")
_NORMALIZATIONS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


def family_of(model: ir.Model) -> Family:
    """The family of ``model``, by where its weights are and what its operators do.

    Recurrent: most weights belong to recurrent operators, or to products inside of loops.
    Transformer: products outweigh convolutions, and there are normalizations or softmaxes between
    them. Convolutional: convolutions outweigh products. Dense: anything else.
    """
    weights: dict[_Kind, int] = {"recurrent": 0, "convolution": 0, "product": 0}
    attends = False
    for node in all_nodes(model):
        attends = attends or node.op_type in ("Softmax", "Attention", *_NORMALIZATIONS)
        kind = _kind_of(node, model)
        if kind is not None:
            weights[kind] += _weight_count(node)
    if weights["recurrent"] > max(weights["convolution"], weights["product"]):
        return "recurrent"
    if weights["convolution"] >= weights["product"]:
        return "convolutional"
    return "transformer" if attends else "dense"


def _kind_of(node: ir.Node, model: ir.Model) -> _Kind | None:
    if node.op_type in _RECURRENT:
        return "recurrent"
    if node.op_type in ("Conv", "ConvTranspose"):
        return "convolution"
    if node.op_type not in ("Gemm", "MatMul"):
        return None
    return "product" if node.graph is model.graph else "recurrent"


def _weight_count(node: ir.Node) -> int:
    tensors = [constant_tensor(value) for value in node.inputs[1:3] if value is not None]
    return sum(tensor.size for tensor in tensors if tensor is not None)
