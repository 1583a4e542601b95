"""The calibration methods by name, and their textual form: ``percentile{percentile=99.9}``."""

from __future__ import annotations

from typing import Any, TypeAlias

from onnxfold.passes.errors import UsageError
from onnxfold.passes.spec import build, parse_pipeline, print_with_options
from onnxfold.passes.suggest import did_you_mean
from onnxfold.runtime.calibrate.auto import Auto
from onnxfold.runtime.calibrate.entropy import Entropy
from onnxfold.runtime.calibrate.method import Method
from onnxfold.runtime.calibrate.min_max import MinMax
from onnxfold.runtime.calibrate.moving_average import MovingAverage
from onnxfold.runtime.calibrate.mse import Mse
from onnxfold.runtime.calibrate.percentile import Percentile
from onnxfold.runtime.calibrate.standard_deviation import StandardDeviation
from onnxfold.runtime.calibrate.winsorized import Winsorized

AnyMethod: TypeAlias = Method[Any]

METHODS: dict[str, type[AnyMethod]] = {
    each.name: each
    for each in (
        MinMax,
        MovingAverage,
        Percentile,
        StandardDeviation,
        Winsorized,
        Entropy,
        Mse,
        Auto,
    )
}
"""Every method under the name users call it by."""


def parse_method(text: str) -> AnyMethod:
    """The method that ``text`` names, with the options written behind it in braces.

    Raises:
        UsageError: The text is malformed, or names an unknown method or option.
    """
    specs = parse_pipeline(text)
    if len(specs) != 1:
        raise UsageError(f"'{text}' is not one calibration method")
    name = specs[0].name
    if name not in METHODS:
        hint = did_you_mean(name, METHODS) or f"; there are {', '.join(METHODS)}"
        raise UsageError(f"no calibration method '{name}'{hint}")
    return build("calibration method", METHODS[name], specs[0])


def method_text(method: AnyMethod) -> str:
    """The method with the options that are not as by default; ``parse_method`` reads it back."""
    return print_with_options(method.name, method)
