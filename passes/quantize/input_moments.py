"""Second moments of what the weights of linear operators are multiplied by.

Rounding weights w to q changes outputs by (w - q) x. Its mean square over data is
(w - q)^T H (w - q) with H = E[x x^T]: all that the choice of codes needs to know of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.array_file import ArrayFile
from onnxfold.passes.quantize.weight_rows import WeightRows


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """What the weights of one operator are multiplied by, summed exactly, and these weights.

    Inputs are rounded to multiples of a power of two, so sums are integers: they are the same in
    whatever order, on however many threads and in however many shards data is summed.

    Attributes:
        weights: The float weights as stored in the model.
        count: Number of input vectors seen.
        sums: Exponent e -> sum of x / 2**e, int64 [groups, inputs].
        products: Exponent e -> sum of (x / 2**e) (x / 2**e)^T, int64 [groups, inputs, inputs], or
            [groups, inputs] where only its diagonal is kept.
    """

    weights: Array
    count: int
    sums: Mapping[int, Array]
    products: Mapping[int, Array]

    @property
    def full(self) -> bool:
        """Whether there is more than the diagonal."""
        return all(each.ndim == 3 for each in self.products.values())

    @property
    def second(self) -> Array:
        """E[x x^T], float64 [groups, inputs, inputs], or its diagonal [groups, inputs]."""
        return _mean(self.products, self.count, 2)

    @property
    def diagonal(self) -> Array:
        """E[x^2], float64 [groups, inputs]."""
        if not self.full:
            return self.second
        diagonals = {e: np.diagonal(each, axis1=1, axis2=2) for e, each in self.products.items()}
        return _mean(diagonals, self.count, 2)

    @property
    def mean(self) -> Array:
        """E[x], float64 [groups, inputs]."""
        return _mean(self.sums, self.count, 1)

    def merge(self, other: LayerMoments) -> LayerMoments:
        """Of both together: the same bits as if one had seen all data.

        Raises:
            UsageError: They are those of different operators.
        """
        if self.full != other.full or not np.array_equal(self.weights, other.weights):
            raise UsageError("the input moments are those of different models")
        return LayerMoments(
            self.weights,
            self.count + other.count,
            _united(self.sums, other.sums),
            _united(self.products, other.products),
        )


class InputMoments(ArrayFile[str, LayerMoments]):
    """Node name -> moments of its input: what ``gptq`` and Hessian-weighted scales need."""

    form: ClassVar[str] = "onnxfold-input-moments-1"
    plural: ClassVar[str] = "input moments"
    remedy: ClassVar[str] = "measure the moments"

    def __init__(self, layers: Mapping[str, LayerMoments], *, path: Path | None = None) -> None:
        """Hold ``layers``, by name."""
        super().__init__({name: layers[name] for name in sorted(layers)}, path=path)

    def importance(self, node: ir.Node) -> Array | None:
        """E[x^2] of what each weight of a float ``node`` is multiplied by, of the weights' shape.

        None where the operator was not measured, or has other weights now.
        """
        layer = self.get(node_name(node))
        weights = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        if layer is None or weights is None or not np.array_equal(weights, layer.weights):
            return None
        rows = WeightRows.match(node, weights.shape)
        return None if rows is None else rows.from_rows(layer.diagonal[:, np.newaxis])

    def merge(self, other: InputMoments) -> InputMoments:
        """The moments of two shards of the data together: the same bits as in one go.

        Raises:
            UsageError: They are those of different models.
        """
        if set(self) != set(other):
            raise UsageError("the input moments are those of different models")
        return InputMoments({name: self[name].merge(other[name]) for name in self})

    def _to_arrays(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {"names": np.array(list(self), dtype=np.str_)}
        for index, layer in enumerate(self.values()):
            exponents = sorted(layer.products)
            arrays[f"{index}_weights"] = layer.weights
            arrays[f"{index}_count"] = np.array(layer.count, np.int64)
            arrays[f"{index}_exponents"] = np.array(exponents, np.int64)
            for exponent in exponents:
                arrays[f"{index}_sums_{exponent}"] = layer.sums[exponent]
                arrays[f"{index}_products_{exponent}"] = layer.products[exponent]
        return arrays

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, Array]) -> dict[str, LayerMoments]:
        names: list[str] = arrays["names"].tolist()
        return {name: _layer(arrays, index) for index, name in enumerate(names)}


def _layer(arrays: Mapping[str, Array], index: int) -> LayerMoments:
    exponents: list[int] = arrays[f"{index}_exponents"].tolist()
    return LayerMoments(
        arrays[f"{index}_weights"],
        int(arrays[f"{index}_count"]),
        {each: arrays[f"{index}_sums_{each}"] for each in exponents},
        {each: arrays[f"{index}_products_{each}"] for each in exponents},
    )


def _united(first: Mapping[int, Array], second: Mapping[int, Array]) -> dict[int, Array]:
    exponents = sorted({*first, *second})
    parts = {e: [each[e] for each in (first, second) if e in each] for e in exponents}
    return {e: each[0] if len(each) == 1 else each[0] + each[1] for e, each in parts.items()}


def _mean(sums: Mapping[int, Array], count: int, power: int) -> Array:
    """The mean of all grids together, in an order that does not depend on the data's."""
    terms = [np.ldexp(sums[e].astype(np.float64), power * e) for e in sorted(sums)]
    total: Array = terms[0]
    for term in terms[1:]:
        total = total + term
    return total / max(count, 1)
