"""TensorFlow Lite's means of codes: halves go away from zero, where QuantizeLinear goes to even.

A window of four ends in a half every fourth time, and it is always the same side that they go to:
what is one step here adds up from layer to layer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_LEAST = 2.0**-21
"""The least excess that float32 tells from its own rounding at every mean."""
_SCALE, _ZERO_POINT = 1, 2
"""Their positions among the inputs of QuantizeLinear and DequantizeLinear."""


@dataclass(frozen=True)
class _Means:
    """An AveragePool on codes: DequantizeLinear, AveragePool, QuantizeLinear."""

    dequantize: Any
    pool: Any
    quantize: Any
    excess: float


def round_means_of_codes(model: Any) -> int:
    """Have each quantized AveragePool of ``model`` round as TensorFlow Lite does.

    The pool takes the mean m of the codes themselves (scale 1, zero point 0), of which m (1 + e) is
    rounded. That takes halves beyond the middle and nothing else: other means of n codes lie 1 / n
    from there, and e is half of what would take the largest of them so far. All other nodes keep
    their parameters, and all codes their meaning.

    Args:
        model: An ONNX model as tf2onnx writes it; modified.

    Returns:
        How many pools there were.
    """
    constants = {each.name: _array(each) for each in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pools = [each for each in model.graph.node if each.op_type == "AveragePool"]
    found = [_means(pool, makers, readers, constants) for pool in pools]
    means = [each for each in found if each is not None]
    for each in means:
        _rewrite(model, each, constants[each.quantize.input[_ZERO_POINT]].dtype)
    return len(means)


def _means(
    pool: Any,
    makers: Mapping[str, Any],
    readers: Mapping[str, list[Any]],
    constants: Mapping[str, Any],
) -> _Means | None:
    """``pool`` between nodes of one type of codes; None where it is not, or halves do not occur."""
    dequantize, after = makers.get(pool.input[0]), readers.get(pool.output[0], [])
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(after) != 1:
        return None
    (quantize,) = after
    places = (_SCALE, _ZERO_POINT)
    if quantize.op_type != "QuantizeLinear" or len(dequantize.input) != len(quantize.input):
        return None
    before, behind = (
        [constants.get(node.input[place]) for place in places] for node in (dequantize, quantize)
    )
    if any(each is None or each.ndim for each in (*before, *behind)) or before != behind:
        return None
    limits = np.iinfo(np.asarray(behind[1]).dtype)
    count, padded = _window(pool)
    excess = 1.0 / (2 * count * max(abs(int(limits.min)), int(limits.max)))
    # Odd numbers of codes have no half; a window may count fewer at a border.
    if (count % 2 and not padded) or excess < _LEAST:
        return None
    return _Means(dequantize, pool, quantize, excess)


def _rewrite(model: Any, means: _Means, dtype: Any) -> None:
    """Give the pool codes to read and to write; its DequantizeLinear may have other readers."""
    onnx: Any = importlib.import_module("onnx")
    name = means.pool.output[0]
    codes, one, zero, least = (
        f"{name}_{part}" for part in ("codes", "scale", "zero_point", "quantum")
    )
    values = (
        (one, np.ones((), np.float32)),
        (zero, np.zeros((), dtype)),
        (least, np.asarray(1.0 / (1.0 + means.excess), np.float32)),
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(each, key) for key, each in values)
    dequantize = onnx.helper.make_node(
        "DequantizeLinear", [means.dequantize.input[0], one, zero], [codes], name=codes
    )
    place = list(model.graph.node).index(means.pool)
    model.graph.node.insert(place, dequantize)
    means.pool.input[0] = codes
    means.quantize.input[_SCALE], means.quantize.input[_ZERO_POINT] = least, zero


def _window(pool: Any) -> tuple[int, bool]:
    """How many elements a whole window has, and whether there may be windows that have fewer."""
    attributes = {each.name: each for each in pool.attribute}
    padded = "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID")
    padded |= "pads" in attributes and any(attributes["pads"].ints)
    padded |= "ceil_mode" in attributes and attributes["ceil_mode"].i != 0
    return math.prod(attributes["kernel_shape"].ints), bool(padded)


def _array(tensor: Any) -> Any:
    onnx: Any = importlib.import_module("onnx")
    return onnx.numpy_helper.to_array(tensor)
