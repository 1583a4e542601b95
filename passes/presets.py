"""Pipelines by purpose, as text."""

from __future__ import annotations

import re
from typing import Literal

SIMPLIFY = (
    "remove-dead-code,lift-constants,capture-invariants,infer-shapes,fold-constants,"
    "remove-identity,resolve-shapes,merge-casts,remove-identity,move-transposes,merge-transposes,"
    "merge-reshapes,remove-identity,deduplicate-initializers,"
    "eliminate-common-subexpressions,infer-shapes,fold-constants,remove-identity,"
    "remove-dead-code"
)
"""Everything that keeps every bit."""


def _fusing(scale_bias: str) -> str:
    return (
        "einsum-to-matmul,absorb-transposes,infer-shapes,remove-redundant-expand,narrow-expand,"
        "fuse-one-hot-matmul,"
        "fold-constant-lookup,fold-lookup-table,fuse-layer-norm,fuse-softmax,"
        f"fuse-hard-swish,fold-pad,fold-scaler,scale-factor,{scale_bias},fold-batch-norm,"
        f"{scale_bias},"
        "narrow-global-max-pool,fuse-depth-to-space,fuse-matmul-add"
    )


FUSE = _fusing("fold-scale-bias")
"""What reorders real arithmetic; patterns first, before their parts are folded elsewhere."""

OPTIMIZE = f"infer-shapes,upgrade-opset,{SIMPLIFY},{FUSE},{SIMPLIFY}"
"""What ``optimize`` runs on a float model."""

_SPREAD = 16
"""Digits behind scikit-learn's StandardScaler: 28.7 dB where its factors, which differ by 200, stay
arithmetic, 10.2 dB where they are part of the first product's weights (measured)."""
_SCALES = f"fold-scale-bias{{spread={_SPREAD}}}"

BEFORE_QUANTIZING = (
    f"inline-functions{{which=all}},infer-shapes,upgrade-opset,{SIMPLIFY},{_fusing(_SCALES)},"
    f"{SIMPLIFY}"
)
"""What ``compile`` runs before it quantizes.

Exporters hide whole networks in local functions, where nothing could be quantized.
"""

FINISH = "masked-sum,sum-before-layer-norm"
"""What ONNX Runtime runs faster, but other passes do not look for: the last of all."""

START_CODES = "round-biases"
"""Before ``compile`` folds for ONNX Runtime: what its kernels round, the fold may not."""

FINISH_CODES = f"fast-gelu,scale-quick-gelu,transpose-heads,remove-dead-code,{FINISH}"
"""The same for models on codes, within a part of a code."""

FOLD = (
    "infer-shapes,upgrade-opset,inline-functions,lift-constants,infer-shapes,einsum-to-matmul,"
    "fold-constants,remove-identity,move-transposes,lift-qoperator,infer-shapes"
)
"""What ``fold`` runs before it folds: nothing that takes Q/DQ pairs apart."""

EXPORTED = (
    "lift-constants,infer-shapes,fold-constants{keep-float16},remove-identity,resolve-shapes,"
    "merge-casts,remove-identity,remove-dead-code,infer-shapes,resolve-shapes,move-transposes,"
    "absorb-transposes,merge-transposes,infer-shapes,resolve-shapes,merge-reshapes,"
    "fold-constants{keep-float16},remove-identity,deduplicate-initializers,"
    "eliminate-common-subexpressions,remove-dead-code,infer-shapes"
)
"""What ``export`` cleans up after an exporter: shapes, casts, transposes; keeps every Q/DQ pair."""

TIDY = "deduplicate-initializers,remove-dead-code,infer-shapes"
"""What runs after quantizing or folding."""


_PREPARE = "move-wide-codes,lower-conv-transpose,promote-vectors,infer-shapes,"

_RELAXED = (
    "fold-constants,remove-identity,merge-transposes,merge-reshapes,fold-pad,fuse-matmul-add,"
    "remove-dead-code,infer-shapes"
)

Relaxation = Literal["", "keep", "drop"]
"""No relaxation; or which limits stay where activations are not rounded: see ``relax-rounding``."""


def folding(
    target: str,
    *,
    costs: str = "",
    relax: Relaxation = "",
    reduce_range: bool = False,
    dynamic_lstm: bool = False,
    float_biases: bool = False,
) -> str:
    """What ``fold`` runs: first to operators the target has, then the fold, then tidying.

    Args:
        target: What to fold for.
        costs: A file of costs, or ``none``; see ``fold-qdq``.
        relax: Whether activations need not be rounded, and then what becomes of their limits.
        reduce_range: Whether weights are reduced that x86 machines without VNNI compute wrongly,
            and products of two computed tensors left as those compute them right.
        dynamic_lstm: Whether LSTMs with quantized weights may round their data at every step.
        float_biases: Whether biases are float numbers (target ``qdq``, for TensorRT).
    """
    lookups = "gather-blocked{contrib}," if target == "ort" else "gather-blocked,"
    prepare = (
        "carry-codes,centre-weights,"
        if target == "qdq"
        else f"{lookups}{_PREPARE}carry-codes{{recode}},centre-weights,"
    )
    if target == "ort":
        prepare += "split-readers,"
    if relax:
        prepare = f"relax-rounding{{limits={relax}}},{_RELAXED},{prepare}"
    if dynamic_lstm:
        prepare = f"quantize-lstm,{prepare}"
    fold = fold_pass(target, costs, reduce_range=reduce_range, float_biases=float_biases)
    signs = "sign-operands," if target == "ort" and not reduce_range else ""
    return f"{FOLD},{prepare}{fold},{signs}{TIDY}"


def fold_pass(
    target: str, costs: str = "", *, reduce_range: bool = False, float_biases: bool = False
) -> str:
    """The fold itself, for a target and by a file of costs; maybe with reduced weights."""
    option = f" costs={_quoted(costs)}" if costs else ""
    option += " biases=float" if float_biases else ""
    before = "reduce-range," if reduce_range else ""
    return f"{before}fold-qdq{{target={target}{option}}}"


WIDE_TARGETS = ("standard", "integer")
"""The targets of the fold that compute with activations of 16 bits."""

Mode = Literal["dynamic-range", "full-integer", "16x8", "float16", "int4-weights"]
"""The modes of post-training quantization that TensorFlow Lite has, by its names; and one more."""


def quantizing(mode: Mode, ranges: str = "", target: str = "ort") -> str:
    """What quantizes an optimized float model in one of TensorFlow Lite's modes.

    ``dynamic-range``: products and LSTMs on int8 with ranges taken at every run, weights of GRU and
    RNN stored in int8. ``full-integer``: int8 activations and weights, integer inputs and outputs,
    folded. ``16x8``: int16 activations around zero and int8 weights, folded for targets that
    compute with them, else as Q/DQ. ``float16``: weights stored in float16. ``int4-weights``:
    weights of products in 4 bits, in blocks of 32; those of LSTM, GRU and RNN in 8.

    Args:
        mode: The mode.
        ranges: The file of what values tensors take: needed by ``full-integer`` (for inputs and
            outputs too) and ``16x8``.
        target: What ``full-integer`` and ``16x8`` fold for.
    """
    path = _quoted(ranges)
    match mode:
        case "dynamic-range":
            return f"quantize-dynamic,{TIDY}"
        case "full-integer":
            edges = f"integer-io{{ranges={path} type=s8}}"
            return f"insert-qdq{{ranges={path} activations=s8}},{edges},{folding(target)}"
        case "16x8":
            insert = f"insert-qdq{{ranges={path} activations=s16 symmetric}}"
            end = folding(target) if target in WIDE_TARGETS else TIDY
            return f"upgrade-opset{{to=21 strict}},infer-shapes,{insert},{end}"
        case "float16":
            return f"store-float16,{TIDY}"
        case "int4-weights":
            return f"quantize-weights{{form=nbits op-types=MatMul,Gemm,LSTM,GRU,RNN}},{TIDY}"


def _quoted(path: str) -> str:
    """``path`` as the value of an option."""
    escaped = re.sub(r'(["\\])', r"\\\1", path)
    return f'"{escaped}"'
