"""The largest magnitudes that channels of activations reach: what ``smooth-quant`` needs."""

from __future__ import annotations

from typing import ClassVar

from onnxfold.passes.quantize.channel_numbers import ChannelNumbers


class ChannelMaxima(ChannelNumbers):
    """Node name -> max|x| of the data of a linear operator, one number per input channel."""

    plural: ClassVar[str] = "channel maxima"
    key: ClassVar[str] = "maxima"
