"""Pipelines by purpose, as text."""

from __future__ import annotations

SIMPLIFY = (
    "remove-dead-code,lift-constants,infer-shapes,fold-constants,remove-identity,"
    "merge-transposes,merge-reshapes,remove-identity,deduplicate-initializers,"
    "eliminate-common-subexpressions,infer-shapes,fold-constants,remove-identity,"
    "remove-dead-code"
)
"""Everything that keeps every bit."""

FUSE = (
    "einsum-to-matmul,infer-shapes,remove-redundant-expand,fuse-one-hot-matmul,fold-lookup-table,fuse-layer-norm,fuse-softmax,"
    "fuse-hard-swish,fold-pad,fold-scale-bias,fold-batch-norm,fold-scale-bias,"
    "narrow-global-max-pool,fuse-matmul-add"
)
"""What reorders real arithmetic; patterns first, before their parts are folded elsewhere."""

OPTIMIZE = f"infer-shapes,upgrade-opset,{SIMPLIFY},{FUSE},{SIMPLIFY}"
"""What ``optimize`` runs on a float model, and ``compile`` before it quantizes."""

FOLD = (
    "infer-shapes,upgrade-opset,lift-constants,infer-shapes,einsum-to-matmul,fold-constants,"
    "remove-identity,lift-qoperator,infer-shapes"
)
"""What ``fold`` runs before it folds: nothing that takes Q/DQ pairs apart."""

TIDY = "deduplicate-initializers,remove-dead-code,infer-shapes"
"""What runs after quantizing or folding."""


def folding(target: str) -> str:
    """What ``fold`` runs for a target: first to operators it has, then the fold, then tidying."""
    prepare = "" if target == "qdq" else "lower-conv-transpose,promote-vectors,infer-shapes,"
    return f"{FOLD},{prepare}fold-qdq{{target={target}}},{TIDY}"
