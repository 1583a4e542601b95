"""The targets by name."""

from __future__ import annotations

from onnxfold.passes.fold import lower_integer, lower_ort, lower_qdq, lower_standard
from onnxfold.passes.fold.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        lower_ort.TARGET,
        lower_standard.TARGET,
        lower_qdq.TARGET,
        lower_integer.TARGET,
    )
}
"""What ``fold-qdq{target=...}`` accepts."""
