"""One op in numpy, as its definition says: onnx's reference, put right where that is not.

The reference evaluator (onnx 1.23) computes in the type it is given, so that float64 in gives
float64 out. It is wrong about GlobalMaxPool of any rank but 4, windows with SAME_LOWER, Softmax
before opset 13, BatchNormalization before opset 14, grouped ConvTranspose, and Resize to
sizes that are rounded down.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx.helper import get_attribute_value
from onnx.reference import ReferenceEvaluator

from onnxfold.passes.constants import Array

_QDQ_OPSET = 21
_Attributes = Mapping[str, Any]
_Op = Callable[[Sequence[Array], _Attributes], Array]


class NotEvaluatedError(Exception):
    """The op is not known, does not apply to its inputs, or is beyond the reference."""


def evaluate_node(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of an ai.onnx node.

    Args:
        node: The node; names do not matter, but an input without a name is absent.
        inputs: What it reads.
        opset: The version of ai.onnx. Q and DQ are evaluated as in opset 21 at least.

    Raises:
        NotEvaluatedError: It cannot be evaluated.
    """
    attributes = {each.name: get_attribute_value(each) for each in node.attribute}
    own = _own_op(node, attributes, inputs, opset)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            if own is not None:
                return [own([each for each in inputs if each is not None], attributes)]
            return _by_reference(node, inputs, opset)
        except Exception as error:
            raise NotEvaluatedError(f"{node.op_type}: {error}") from error


def _by_reference(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if copy.op_type in ("QuantizeLinear", "DequantizeLinear"):
        copy.domain, opset = "", max(opset, _QDQ_OPSET)
    del copy.input[:], copy.output[:]
    copy.input.extend("" if each is None else f"input_{i}" for i, each in enumerate(inputs))
    copy.output.extend(f"output_{i}" for i in range(len(node.output)))
    feeds = {f"input_{i}": each for i, each in enumerate(inputs) if each is not None}
    graph = onnx.helper.make_graph(
        [copy],
        "node",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in copy.output],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
    return [np.asarray(each) for each in cast("list[Any]", evaluator.run(None, feeds))]


def _own_op(
    node: onnx.NodeProto, attributes: _Attributes, inputs: Sequence[Array | None], opset: int
) -> _Op | None:
    """What replaces the reference; None where that is right.

    Raises:
        NotEvaluatedError: It is wrong, and nothing replaces it.
    """
    if node.op_type in _POOLS and len(node.output) == 1 and not attributes.get("ceil_mode"):
        return _POOLS[node.op_type]
    if node.op_type in ("Softmax", "LogSoftmax") and opset < 13:
        return _flat_softmax if node.op_type == "Softmax" else _flat_log_softmax
    if node.op_type == "BatchNormalization" and not attributes.get("training_mode"):
        return _batch_normalization
    if node.op_type == "ConvTranspose" and not {"auto_pad", "output_shape"} & {*attributes}:
        return _transposed_convolution
    if node.op_type == "Resize" and _rounds_sizes(inputs):
        raise NotEvaluatedError("Resize: sizes that are rounded down")
    return None


def _rounds_sizes(inputs: Sequence[Array | None]) -> bool:
    data, scales = inputs[0], inputs[2] if len(inputs) > 2 else None
    if data is None or scales is None or scales.size != data.ndim:
        return False
    sizes = np.array(data.shape) * scales
    return bool(np.any(sizes != np.floor(sizes)))


def _windows(data: Array, attributes: _Attributes, fill: float) -> Array:
    """All windows of padded ``data``: [N, C, *outputs, *kernel]."""
    kernel = [int(each) for each in attributes["kernel_shape"]]
    ones = [1] * len(kernel)
    strides = attributes.get("strides") or ones
    dilations = attributes.get("dilations") or ones
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(data.shape[2:], attributes, reach, strides)
    padded = np.pad(data, [(0, 0), (0, 0), *pads], constant_values=fill)
    axes = tuple(range(2, data.ndim))
    views = sliding_window_view(padded, reach, axes)
    steps = tuple(slice(None, None, each) for each in strides)
    inside = tuple(slice(None, None, each) for each in dilations)
    return views[(slice(None), slice(None), *steps, *inside)]


def _pads(
    sizes: Sequence[int], attributes: _Attributes, reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if not mode.startswith("SAME"):
        pads = attributes.get("pads") or [0] * 2 * len(sizes)
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    found: list[tuple[int, int]] = []
    for size, extent, stride in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return found


def _max_pool(inputs: Sequence[Array], attributes: _Attributes) -> Array:
    data = inputs[0]
    lowest = -np.inf if data.dtype.kind == "f" else np.iinfo(data.dtype).min
    windows = _windows(data, attributes, lowest)
    return np.max(windows, axis=tuple(range(data.ndim, windows.ndim)))


def _average_pool(inputs: Sequence[Array], attributes: _Attributes) -> Array:
    data = inputs[0]
    windows = _windows(data, attributes, 0)
    axes = tuple(range(data.ndim, windows.ndim))
    if attributes.get("count_include_pad"):
        return np.mean(windows, axis=axes)
    counted = _windows(np.ones_like(data), attributes, 0)
    return np.sum(windows, axis=axes) / np.sum(counted, axis=axes)


def _image(data: Array) -> tuple[int, ...]:
    return tuple(range(2, data.ndim))


def _flat_softmax(inputs: Sequence[Array], attributes: _Attributes) -> Array:
    """Softmax as it was before opset 13: over all axes from ``axis`` on."""
    data = inputs[0]
    axis = attributes.get("axis", 1) % max(data.ndim, 1)
    axes = tuple(range(axis, data.ndim))
    powers = np.exp(data - np.max(data, axis=axes, keepdims=True))
    return powers / np.sum(powers, axis=axes, keepdims=True)


def _flat_log_softmax(inputs: Sequence[Array], attributes: _Attributes) -> Array:
    return np.log(_flat_softmax(inputs, attributes))


def _batch_normalization(inputs: Sequence[Array], attributes: _Attributes) -> Array:
    shape = [1, -1, *[1] * (inputs[0].ndim - 2)]
    scale, offset, mean, variance = (each.reshape(shape) for each in inputs[1:5])
    deviation = np.sqrt(variance + attributes.get("epsilon", 1e-5))
    return (inputs[0] - mean) / deviation * scale + offset


def _transposed_convolution(inputs: Sequence[Array], attributes: _Attributes) -> Array:
    """Every input spreads its weights over the outputs from ``stride`` times its place on."""
    data, weights = inputs[:2]
    rank, group = data.ndim - 2, attributes.get("group", 1)
    kernel, sizes = weights.shape[2:], data.shape[2:]
    strides = attributes.get("strides") or [1] * rank
    dilations = attributes.get("dilations") or [1] * rank
    more = attributes.get("output_padding") or [0] * rank
    pads = attributes.get("pads") or [0] * 2 * rank
    per_axis = list(zip(sizes, strides, kernel, dilations, more, strict=True))
    full = [(n - 1) * s + (k - 1) * d + 1 + extra for n, s, k, d, extra in per_axis]
    grouped = data.reshape(data.shape[0], group, -1, *sizes)
    factors = weights.reshape(group, -1, *weights.shape[1:])
    output = np.zeros((data.shape[0], group, weights.shape[1], *full), data.dtype)
    for place in itertools.product(*map(range, kernel)):
        spread = np.einsum("bgc...,gcm->bgm...", grouped, factors[(..., *place)])
        region = [
            slice(at * d, at * d + (n - 1) * s + 1, s)
            for at, (n, s, _, d, _) in zip(place, per_axis, strict=True)
        ]
        output[(..., *region)] += spread
    output = output.reshape(data.shape[0], -1, *full)
    inside = [slice(pads[i], size - pads[rank + i]) for i, size in enumerate(full)]
    output = output[(..., *inside)]
    return output if len(inputs) < 3 else output + inputs[2].reshape(-1, *[1] * rank)


_POOLS: dict[str, _Op] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda inputs, _: np.mean(inputs[0], _image(inputs[0]), keepdims=True),
    "GlobalMaxPool": lambda inputs, _: np.max(inputs[0], _image(inputs[0]), keepdims=True),
    "MaxPool": _max_pool,
}
