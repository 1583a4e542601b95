"""Structural similarity of images."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected
from onnxfold.passes.loss.shapes import need_rank


@loss("ssim", better="higher")
def ssim(
    graph: LossGraph,
    predictions: Variable,
    *,
    max_value: float = 1.0,
    layout: Literal["nchw", "nhwc"] = "nchw",
    window: Literal["gaussian", "uniform"] = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    reduction: Reduction = "mean",
) -> Variable:
    """Likeness of means, variances and covariance under a sliding window, averaged.

    (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (v_x + v_y + c2)).

    m, v and s are means, variances and covariance under the window, c1 = (k1 max_value)^2 and
    c2 = (k2 max_value)^2. Only windows that lie within the image count; each channel by itself.

    Source: Wang et al., Image Quality Assessment; the defaults are those of tf.image.ssim, and of
    skimage.metrics.structural_similarity with gaussian_weights and without sample covariance.
    skimage's own defaults are ``window=uniform size=7 sample-covariance``.

    Shapes: predictions and targets ``[N, C, H, W]`` or, with ``layout=nhwc``, ``[N, H, W, C]``;
    values ``[N]``. Unit: none; at most 1. ONNX Runtime's CPU provider has no Conv for float64.

    Args:
        graph: The graph to build in.
        predictions: Images.
        max_value: The largest value a pixel can have less the smallest: 1, or 255.
        layout: Where the channels are.
        window: The weights of a window's pixels.
        size: A window's height and width.
        sigma: The Gaussian's standard deviation in pixels.
        k1: Keeps the comparison of means finite.
        k2: Keeps the comparison of variances finite.
        sample_covariance: Divide by the number of pixels less one (uniform windows only).
        reduction: What becomes of the images' values.
    """
    need_rank(predictions, "images", 4)
    if size < 2 or not (max_value > 0 and sigma > 0):
        raise UsageError("size must be at least 2, max value and sigma positive")
    if sample_covariance and window != "uniform":
        raise UsageError("sample covariance is for window=uniform")
    height, width = predictions.shape[2:] if layout == "nchw" else predictions.shape[1:3]
    if any(isinstance(each, int) and each < size for each in (height, width)):
        raise UsageError(f"windows of {size} x {size} do not fit images of {height} x {width}")
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    x, y = (_planes(graph, each, layout) for each in (predictions, targets))

    squares = graph.op("Add", graph.op("Mul", x, x), graph.op("Mul", y, y))
    stack = graph.op("Concat", x, y, squares, graph.op("Mul", x, y), axis=1)
    blurred = _blurred(graph, stack, _weights(window, size, sigma))
    mean_x, mean_y, square, product = (
        graph.op("Gather", blurred, channel, axis=1) for channel in range(4)
    )
    correction = size * size / (size * size - 1) if sample_covariance else 1.0
    c1, c2 = (k1 * max_value) ** 2, (k2 * max_value) ** 2
    means = graph.op("Mul", mean_x, mean_y)
    mean_squares = graph.op("Add", graph.op("Mul", mean_x, mean_x), graph.op("Mul", mean_y, mean_y))
    covariance = graph.op("Mul", graph.op("Sub", product, means), 2 * correction)
    variances = graph.op("Mul", graph.op("Sub", square, mean_squares), correction)
    luminance = graph.op(
        "Div",
        graph.op("Add", graph.op("Mul", means, 2.0), c1),
        graph.op("Add", mean_squares, c1),
    )
    structure = graph.op("Div", graph.op("Add", covariance, c2), graph.op("Add", variances, c2))
    planes = graph.reduce("ReduceMean", graph.op("Mul", luminance, structure), [1, 2])
    channels = predictions.shape[1 if layout == "nchw" else 3]
    images = graph.op("Reshape", planes, _images_and_channels(graph, predictions, channels))
    return collected(graph, graph.reduce("ReduceMean", images, [1]), reduction)


def _images_and_channels(graph: LossGraph, images: Variable, channels: int | str | None) -> Any:
    if isinstance(channels, int):
        return [-1, channels]
    return graph.op("Concat", graph.op("Unsqueeze", graph.size(images, 0), [0]), [-1], axis=0)


def _planes(graph: LossGraph, images: Variable, layout: str) -> Variable:
    """[N C, 1, H, W]."""
    if layout == "nhwc":
        images = graph.op("Transpose", images, perm=[0, 3, 1, 2])
    shape = graph.op("Shape", images)
    plane = graph.op("Slice", shape, [2], [4])
    return graph.op("Reshape", images, graph.op("Concat", [-1, 1], plane, axis=0))


def _weights(window: str, size: int, sigma: float) -> Array:
    if window == "uniform":
        return np.full(size, 1 / size)
    weights = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    return weights / weights.sum()


def _blurred(graph: LossGraph, stack: Variable, weights: Array) -> Variable:
    """Means under the window: it is the product of a column and a row."""
    columns = graph.constant(np.tile(weights.reshape(1, 1, -1, 1), (4, 1, 1, 1)))
    rows = graph.constant(np.tile(weights.reshape(1, 1, 1, -1), (4, 1, 1, 1)))
    return graph.op("Conv", graph.op("Conv", stack, columns, group=4), rows, group=4)
