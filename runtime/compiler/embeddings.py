"""Embeddings: which output is one, and how well its ranking of similarities survives.

An embedding is there to be compared with others: what counts is not its noise but the order of the
similarities, that of the nearest above all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.runtime.compiler.families import family_of
from onnxfold.runtime.specs import is_float

RANKING = "ranking of similarities"
RANKING_SHARE = 0.5
"""Of the budget's rate: a correlation of 0.995 keeps 99 % of what people agree with (measured on
sentence embeddings, where 0.993 loses 1.5 %)."""
LEAST_ROWS = 16
"""Fewer embeddings have too few pairs to be ranked: 120."""

_POOLS = frozenset(
    {
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "LpNormalization"),
        *("LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "Tanh"),
    }
)
_TRANSPARENT = frozenset(
    {
        *("Add", "Cast", "Clip", "Concat", "Div", "Flatten", "Gather", "Identity", "Max", "Mul"),
        *("Pow", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
    }
)
_MOST_ROWS = 1024


def embedding_output(model: ir.Model) -> str:
    """The output of a transformer that is an embedding of each sample; empty where there is none.

    Such an output has two dimensions, or three (one vector for each token), and comes straight from
    a pooling or a normalization; a classifier's comes from a product. Every real output has to be
    one: where another is a score, that one decides.
    """
    if family_of(model) != "transformer":
        return ""
    outputs = [each for each in model.graph.outputs if _is_real(each)]
    ranks = {each: 0 if each.shape is None else len(each.shape) for each in outputs}
    if any(ranks[each] not in (2, 3) or not _is_pooled(each) for each in outputs):
        return ""
    # One vector a sample is meant to be compared; vectors of tokens only where there is none.
    return min(outputs, key=lambda each: ranks[each]).name or "" if outputs else ""


def embeddings(output: Array) -> Array:
    """The vectors of an output, float64 [samples, channels]; those of tokens averaged."""
    rows = output.astype(np.float64)
    return rows.mean(axis=1) if rows.ndim == 3 else rows


def ranking_kept(reference: Sequence[Array], candidate: Sequence[Array]) -> float:
    """Spearman's correlation of each sample's cosines to all others, before and after: the mean.

    Args:
        reference: Vectors [samples, channels] of each feed; together at least ``LEAST_ROWS``.
        candidate: The same of another model.

    Returns:
        At most 1, the order of similarities unchanged; 0 where the candidate is not finite.
    """
    old, new = (np.concatenate(each)[:_MOST_ROWS] for each in (reference, candidate))
    if not np.all(np.isfinite(new)):
        return 0.0
    pairs = zip(_cosines(old), _cosines(new), strict=True)
    return float(np.mean([rank_correlation(left, right) for left, right in pairs]))


def rank_correlation(left: Array, right: Array) -> float:
    """Spearman's correlation of two vectors; where one is constant, whether they are equal."""
    return _correlation(_ranks(left), _ranks(right))


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and is_float(value.dtype.numpy())


def _is_pooled(value: ir.Value) -> bool:
    """Whether ``value`` comes from a pooling, by no product with weights."""
    waiting, seen = [value], set[ir.Value]()
    found = False
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if current in seen or node is None or constant_array(current) is not None:
            continue
        seen.add(current)
        if node.op_type in _POOLS:
            found = True
        elif node.op_type in _TRANSPARENT:
            waiting.extend(each for each in node.inputs if each is not None)
        elif _is_real(current):
            return False
    return found


def _cosines(rows: Array) -> Array:
    """Of each row to all others, [rows, rows - 1]."""
    lengths = np.sqrt(np.sum(rows * rows, axis=1, keepdims=True))
    unit = rows / np.maximum(lengths, np.finfo(np.float64).tiny)
    count = len(unit)
    cosines: Array = np.inner(unit, unit)[~np.eye(count, dtype=np.bool_)]
    return cosines.reshape(count, count - 1)


def _ranks(values: Array) -> Array:
    """Ranks from 0 on, equal values sharing their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[place]


def _correlation(left: Array, right: Array) -> float:
    x, y = left - left.mean(), right - right.mean()
    power = float(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y)) / power**0.5 if power else float(np.array_equal(x, y))
