"""Peak signal to noise ratio of images."""

from __future__ import annotations

import math

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.decibels import decibels
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected


@loss("psnr", better="higher")
def psnr(
    graph: LossGraph,
    predictions: Variable,
    *,
    max_value: float = 1.0,
    reduction: Reduction = "mean",
) -> Variable:
    """20 log10(max_value) - 10 log10(mse), mse the mean over an image's last three axes.

    Infinite for identical images, with a gradient of 0. The mean over images of the PSNR is not
    the PSNR of the mean error.

    Source: tf.image.psnr; one image: skimage.metrics.peak_signal_noise_ratio.

    Shapes: predictions and targets ``[..., H, W, C]`` or ``[..., C, H, W]``, which makes no
    difference; values without the last three axes. Units: dB.

    Args:
        graph: The graph to build in.
        predictions: Images.
        max_value: The largest value a pixel can have less the smallest: 1, or 255.
        reduction: What becomes of the images' values.
    """
    if not max_value > 0:
        raise UsageError(f"max value is {max_value}; it must be positive")
    if len(predictions.shape) < 3:
        raise UsageError("images have three dimensions at least: height, width and channels")
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    error = graph.op("Sub", predictions, targets)
    mse = graph.reduce("ReduceMean", graph.op("Mul", error, error), [-3, -2, -1])
    # The logarithm of the maximum is taken apart: its square may not fit the dtype.
    values = graph.op("Sub", 20 * math.log10(max_value), decibels(graph, mse, at_zero=-math.inf))
    return collected(graph, values, reduction)
