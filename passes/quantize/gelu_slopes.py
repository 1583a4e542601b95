"""How steep the logistic function is that a Gelu is nearest to: what ``quick-gelu`` needs."""

from __future__ import annotations

from typing import ClassVar

from onnxfold.passes.quantize.channel_numbers import ChannelNumbers


class GeluSlopes(ChannelNumbers):
    """Name of the node that ends a Gelu -> one number, a in x * sigmoid(a * x)."""

    plural: ClassVar[str] = "gelu slopes"
    key: ClassVar[str] = "slopes"
