"""Detections: one share for each sample, straight from a sigmoid, that a threshold is put to.

A threshold is the user's, and where it lies moves with the application: what counts is which
samples score higher than which, as the area under a ROC curve does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.runtime.compiler.embeddings import rank_correlation
from onnxfold.runtime.specs import is_float

SCORES = "ranking of scores"
SCORES_SHARE = 1.0
"""Of the budget's rate: voice detectors of a rank correlation of 0.991 to 0.995 keep an area under
the curve of 0.970 to 0.975 of 0.972 (measured)."""
LEAST_SCORES = 50

_SHARES = frozenset({"Sigmoid", "HardSigmoid"})
_MOVING = frozenset(
    {"Flatten", "Identity", "ReduceMean", "ReduceMax", "Reshape", "Squeeze", "Unsqueeze"}
)


def detection_outputs(model: ir.Model, states: Collection[str]) -> tuple[str, ...]:
    """The outputs beside ``states``, where each real one is one share for each sample."""
    outputs = [each for each in model.graph.outputs if _is_real(each) and each.name not in states]
    if not outputs or not all(_is_one(each) and _is_share(each) for each in outputs):
        return ()
    return tuple(each.name or "" for each in outputs)


def scores_kept(reference: Sequence[Array], candidate: Sequence[Array]) -> float:
    """Spearman's correlation of scores before and after, 0 where the candidate is not finite.

    Args:
        reference: Scores of each feed, of any shape; together at least two.
        candidate: The same of another model.
    """
    old, new = (
        np.concatenate([part.reshape(-1) for part in each]) for each in (reference, candidate)
    )
    return rank_correlation(old, new) if np.all(np.isfinite(new)) else 0.0


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and is_float(value.dtype.numpy())


def _is_one(value: ir.Value) -> bool:
    sizes = None if value.shape is None else list(value.shape)[1:]
    return sizes is not None and all(each == 1 for each in sizes)


def _is_share(value: ir.Value) -> bool:
    """Whether ``value`` comes straight from a sigmoid, also out of every branch of an If."""
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "If":
        place = value.index() or 0
        bodies = [node.attributes[each].as_graph() for each in ("then_branch", "else_branch")]
        return all(_is_share(body.outputs[place]) for body in bodies)
    if node.op_type in _MOVING:
        return node.inputs[0] is not None and _is_share(node.inputs[0])
    return node.op_type in _SHARES
