"""The forms in which the verdict on two models can be printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from onnxfold.runtime.report.comparison import comparison_blocks
from onnxfold.runtime.report.junit import to_junit
from onnxfold.runtime.report.markdown import to_markdown
from onnxfold.runtime.report.page import to_html
from onnxfold.runtime.report.sarif import to_sarif

Comparison = dict[str, Any]
"""As ``Comparison.to_json`` gives it."""


def _json(comparison: Comparison) -> str:
    return json.dumps(comparison, indent=2) + "\n"


def _markdown(comparison: Comparison) -> str:
    return to_markdown(comparison_blocks(comparison))


def _html(comparison: Comparison) -> str:
    return to_html(comparison_blocks(comparison))


VERDICT_FORMATS: Mapping[str, Callable[[Comparison], str]] = MappingProxyType(
    {
        "json": _json,
        "junit": to_junit,
        "sarif": to_sarif,
        "markdown": _markdown,
        "html": _html,
    }
)
"""Name of a form -> what writes it."""
