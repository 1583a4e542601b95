"""The targets by name."""

from __future__ import annotations

from onnxfold.passes.fold.targets import integer, ort, qdq, standard
from onnxfold.passes.fold.targets.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        ort.TARGET,
        standard.TARGET,
        qdq.TARGET,
        integer.TARGET,
    )
}
"""What ``fold-qdq{target=...}`` accepts."""
