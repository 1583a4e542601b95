"""Biases of linear operators in Q/DQ graphs, as real numbers that a gradient can move, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.provenance import node_name
from onnxfold.passes.quantize.linear_outputs import Dequantized, LinearOutput
from onnxfold.passes.quantize.tuned_constants import Place
from onnxfold.passes.walk import use_count

_LARGEST_CODE = 2.0**30
"""Half of int32, as in ``insert-qdq``: the other half is for the products."""


@dataclass(frozen=True, eq=False)
class Bias:
    """A constant bias of one linear operator that nothing else reads.

    Attributes:
        value: What the operator reads: a constant, or what its codes are dequantized to.
        real: The bias, float32, of the shape of ``value``.
        place: The node that reads the constant, and at which input.
        node: The linear operator.
    """

    value: ir.Value
    real: Array
    place: tuple[ir.Node, int]
    node: ir.Node

    @classmethod
    def match(cls, node: ir.Node) -> Bias | None:
        """Describe the bias of ``node``; None where it has none that can be moved."""
        output = LinearOutput.match(node)
        if output is None:
            return None
        reader, index = node, 2
        if output.add is not None:
            reader, index = output.add, 1 if output.add.inputs[0] is node.outputs[0] else 0
        value = reader.inputs[index] if index < len(reader.inputs) else None
        if value is None or use_count(value) != 1:
            return None
        codes = Dequantized.match(value)
        if codes is None:
            array = constant_array(value)
            real = None if array is None or array.dtype != np.float32 else array
            return None if real is None else cls(value, real, (reader, index), node)
        array = constant_array(codes.codes)
        zero = constant_array(codes.node.inputs[2]) if len(codes.node.inputs) > 2 else None
        if array is None or array.dtype != np.int32 or array.ndim != 1:
            return None
        if codes.scale.size not in (1, array.size) or (zero is not None and zero.any()):
            return None
        real = (array * codes.scale.astype(np.float64).reshape(-1)).astype(np.float32)
        return cls(value, real, (codes.node, 0), node)

    @property
    def _is_coded(self) -> bool:
        return self.place[0].op_type == "DequantizeLinear"

    def step(self, weights: Array | None, fan_in: float) -> Array:
        """A unit to move by: about what rounding the weights does to the output.

        Args:
            weights: The scale of the weights, one number or one a channel; None if not known.
            fan_in: The number of products in a sum.
        """
        data = Dequantized.match(self.node.inputs[0])
        if weights is None or data is None or weights.size not in (1, self.real.size):
            typical = float(np.abs(self.real).mean())
            return np.full(self.real.shape, 0.1 * typical or 0.01, np.float32)
        # Rounding errors are 0.29 steps, codes of activations some 40: noise of that many products.
        each = np.broadcast_to(weights.reshape(-1), (self.real.size,)) * data.scale.max()
        return (12.0 * np.sqrt(fan_in) * each).astype(np.float32).reshape(self.real.shape)

    def constants(
        self, real: Array, scales: Mapping[ir.Node, Array]
    ) -> Iterator[tuple[Place, Array]]:
        """The constants that stand for ``real``.

        Args:
            real: The bias.
            scales: New scales by DequantizeLinear: of weights and of activations.
        """
        node, index = self.place
        if not self._is_coded:
            yield (node_name(node), index), real
            return
        old = constant_array(node.inputs[1])
        assert old is not None
        scale = self._product_scale(old, scales)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.nan_to_num(real.astype(np.float64) / scale.astype(np.float64).reshape(-1))
        codes = np.clip(np.rint(codes), -_LARGEST_CODE, _LARGEST_CODE)
        yield (node_name(node), 0), codes.astype(np.int32)
        if not np.array_equal(scale, old):
            yield (node_name(node), 1), scale

    def _product_scale(self, old: Array, scales: Mapping[ir.Node, Array]) -> Array:
        """The scale of the products, as runtimes compute it, where the bias has that one."""
        data, weights = (Dequantized.match(each) for each in self.node.inputs[:2])
        if data is None or weights is None or data.scale.size != 1:
            return old
        before: Array = np.asarray(data.scale.reshape(()) * weights.scale, np.float32)
        if before.size != old.size or not np.allclose(before.reshape(old.shape), old):
            return old
        left = scales.get(data.node, data.scale).reshape(())
        after: Array = np.asarray(left * scales.get(weights.node, weights.scale), np.float32)
        return after.reshape(old.shape)
