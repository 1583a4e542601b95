"""Losses as ONNX subgraphs, each built by a function, and ``@loss`` to declare one's own.

>>> from onnxfold.passes.loss import LossGraph, Variable, loss
>>> @loss("hinge", tensors=("predictions",))
... def hinge(graph: LossGraph, predictions: Variable, *, margin: float = 1.0) -> Variable:
...     targets = graph.data_input("targets", graph.dtype, predictions.shape)
...     product = graph.op("Mul", predictions, targets)
...     short = graph.op("Relu", graph.op("Sub", margin, product))
...     return graph.reduce("ReduceMean", short)
"""

from __future__ import annotations

from onnxfold.passes.loss.declaration import Loss, loss
from onnxfold.passes.loss.graph import LossGraph, Variable

__all__ = ["Loss", "LossGraph", "Variable", "loss"]
