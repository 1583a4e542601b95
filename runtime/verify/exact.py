"""The real numbers that a fake-quantized region rounds, in float64: where a rounding ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS
from onnxfold.passes.constants import Array, constant_array
from onnxfold.runtime.verify.reference_ops import NotEvaluatedError, evaluate_node

TIE_WIDTH = 2.0**-12
"""How near to a half counts as a tie, in codes: 16 units in the last place of a float32 at 255.

At most 1 number in 2,000 lies as near by chance, so that no systematic error hides behind it."""

_FLOAT_WIDTH = 2.0**-20
"""The same as a share of all codes: what a float32 sum may be off, 2^-4 codes of 65,536."""

_EXACT_WIDTH = 2.0**-10  # what integer arithmetic may be off where float32 is more

MOST_PRODUCTS = 1 << 28
"""Multiplications of a convolution above which it is never evaluated again: about a second."""

_POOLED = 9  # elements of a window, taken for all poolings


@dataclass(frozen=True)
class ExactCodes:
    """What a QuantizeLinear rounds, counted in codes from its zero point.

    Attributes:
        position: Where between the codes each number lies (float64), saturated as codes are.
        count: How many codes there are.
    """

    position: Array
    count: int = 256

    def ties(self, want: Array, got: Array) -> Array:
        """Where ``want`` and ``got``, codes from the zero point, are both correctly rounded.

        Of 16 bits ``want``, from a float32 sum, need not be as near as ``got``: that is integers'.
        """
        in_float = max(TIE_WIDTH, _FLOAT_WIDTH * self.count)
        in_integers = min(in_float, max(TIE_WIDTH, _EXACT_WIDTH))
        near_want = np.abs(want - self.position) <= 0.5 + in_float
        return near_want & (np.abs(got - self.position) <= 0.5 + in_integers)


class NotExactError(Exception):
    """The region holds what is not evaluated again."""


class ExactRegion:
    """Evaluates values of one model in float64, from the codes at the borders of a region."""

    def __init__(self, values: Mapping[str, ir.Value], opset: int) -> None:
        """Look at a model.

        Args:
            values: The values of its main graph by name.
            opset: Its version of ai.onnx.
        """
        self._values = values
        self._opset = opset

    def codes(
        self, name: str, borders: Mapping[str, Array], most_products: int = MOST_PRODUCTS
    ) -> ExactCodes | None:
        """What is rounded to give value ``name``, codes or numbers dequantized from them.

        Args:
            name: Output of a QuantizeLinear, or of a DequantizeLinear behind one.
            borders: What is known, as the model itself computed it.
            most_products: Multiplications of a convolution that are worth while.

        Returns:
            None where ``name`` is nothing of the kind, per channel, or too large to evaluate.
        """
        node = self._values[name].producer()
        if node is not None and node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is None or node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            return None
        scale, zero_point = _grid(node)
        if scale is None or scale.size != 1:
            return None
        limits = _limits(node, zero_point)
        if limits is None:
            return None
        zero = 0.0 if zero_point is None else float(zero_point.reshape(()))
        try:
            real = self._evaluate(node.inputs[0], borders, most_products)
        except NotExactError:
            return None
        position = real / float(scale.reshape(()))
        inside = np.clip(position, limits[0] - zero, limits[1] - zero)
        return ExactCodes(inside, limits[1] - limits[0] + 1)

    def _evaluate(self, value: ir.Value, borders: Mapping[str, Array], most_products: int) -> Array:
        known: dict[ir.Value, Array] = {}
        waiting = [value]
        while waiting:
            current = waiting[-1]
            if current in known:
                waiting.pop()
                continue
            given = _given(current, borders)
            if given is not None:
                known[current] = given
                continue
            node = current.producer()
            if node is None:
                raise NotExactError
            missing = [each for each in node.inputs if each is not None and each not in known]
            if missing:
                waiting += missing
            else:
                self._run(node, known, most_products)
        return known[value]

    def _run(self, node: ir.Node, known: dict[ir.Value, Array], most_products: int) -> None:
        inputs = [None if each is None else known[each] for each in node.inputs]
        if node.op_type == "DequantizeLinear":
            known[node.outputs[0]] = _dequantized(node, known)
            return
        if node.op_type == "QuantizeLinear":
            known[node.outputs[0]] = _quantized(node, known)
            return
        if node.domain or any(each.is_ref() for each in node.attributes.values()):
            raise NotExactError
        if _products(node, inputs) > most_products:
            raise NotExactError
        for output, result in zip(node.outputs, self._results(node, inputs), strict=False):
            known[output] = result.astype(np.float64) if result.dtype == np.float32 else result

    def _results(self, node: ir.Node, inputs: list[Array | None]) -> list[Array]:
        proto = onnx.NodeProto(op_type=node.op_type, output=[""] * len(node.outputs))
        attributes = node.attributes.values()
        proto.attribute.extend(ir.serde.serialize_attribute(each) for each in attributes)
        try:
            return evaluate_node(proto, inputs, self._opset)
        except NotEvaluatedError as error:
            raise NotExactError from error


def _given(value: ir.Value, borders: Mapping[str, Array]) -> Array | None:
    """What is known of ``value`` without computing it; real numbers as float64."""
    array = borders.get(value.name or "")
    if array is None:
        array = constant_array(value)
    if array is None or array.dtype.kind != "f":
        return array
    return array.astype(np.float64)


def _grid(node: ir.Node) -> tuple[Array | None, Array | None]:
    """Scale and zero point of a Q or DQ node, where they are constant and not blocked."""
    scale = constant_array(node.inputs[1])
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant_array(zero_point)
    if node.attributes.get_int("block_size", 0) or (zero is None and zero_point is not None):
        return None, None
    return scale, zero


def _quantized(node: ir.Node, known: Mapping[ir.Value, Array]) -> Array:
    """The codes of a QuantizeLinear inside a region.

    Raises:
        NotExactError: A rounding ties, so that there are two truths; or it is not per tensor.
    """
    scale, zero_point = _grid(node)
    limits = _limits(node, zero_point)
    real = None if node.inputs[0] is None else known.get(node.inputs[0])
    if scale is None or scale.size != 1 or limits is None or real is None:
        raise NotExactError
    position = real / float(scale.reshape(()))
    if bool(np.any(np.abs(position - np.floor(position) - 0.5) <= TIE_WIDTH)):
        raise NotExactError
    zero = 0 if zero_point is None else int(zero_point.reshape(()))
    return np.clip(np.rint(position) + zero, *limits)


def _limits(node: ir.Node, zero_point: Array | None) -> tuple[int, int] | None:
    """The smallest and the largest code of a QuantizeLinear; None where they are no integers."""
    if zero_point is not None:
        dtype = ir.DataType.from_numpy(zero_point.dtype)
    else:
        dtype = ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    return INTEGER_LIMITS.get(dtype)


def _dequantized(node: ir.Node, known: Mapping[ir.Value, Array]) -> Array:
    scale, zero_point = _grid(node)
    codes = None if node.inputs[0] is None else known.get(node.inputs[0])
    if scale is None or codes is None:
        raise NotExactError
    centred = codes.astype(np.float64)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[node.attributes.get_int("axis", 1)] = -1
    if zero_point is not None:
        centred -= zero_point.astype(np.float64).reshape(shape)
    return centred * scale.astype(np.float64).reshape(shape)


def _products(node: ir.Node, inputs: list[Array | None]) -> int:
    """Multiplications of a convolution, which numpy is slow at; 0 for other ops."""
    data = inputs[0] if inputs else None
    if node.op_type not in ("Conv", "ConvTranspose", "AveragePool") or data is None:
        return 0
    weights = inputs[1] if len(inputs) > 1 else None
    size = _POOLED * data.shape[1] if weights is None else weights.size
    return data.size * size // max(data.shape[1], 1)
