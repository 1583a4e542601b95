"""By how much the outputs of linear operators are off on average: what ``correct-bias`` needs."""

from __future__ import annotations

from typing import ClassVar

from onnxfold.passes.quantize.channel_numbers import ChannelNumbers


class OutputErrors(ChannelNumbers):
    """Node name -> mean of (original output - quantized output), one number per output channel."""

    plural: ClassVar[str] = "output errors"
    key: ClassVar[str] = "errors"
