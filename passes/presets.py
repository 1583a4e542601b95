"""Pipelines by purpose, as text."""

from __future__ import annotations

SIMPLIFY = (
    "remove-dead-code,lift-constants,infer-shapes,fold-constants,remove-identity,"
    "merge-transposes,merge-reshapes,remove-identity,deduplicate-initializers,"
    "eliminate-common-subexpressions,infer-shapes,fold-constants,remove-identity,"
    "remove-dead-code"
)
"""Everything that keeps every bit."""

OPTIMIZE = SIMPLIFY
"""What ``optimize`` runs on a float model."""
