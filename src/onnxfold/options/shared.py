"""The options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

_DATA = (
    "inputs: FILE.npz (one array per input, first axis = samples), a folder of .npz (one feed a "
    "file), ONNX test_data_set_* folders, FILE.parquet, or FILE.py:function yielding dicts of "
    "arrays"
)
_WITHOUT = "; without it inputs are generated, and the report says so"

TARGETS = {
    "ort": "integer operators of ONNX Runtime (com.microsoft allowed)",
    "standard": "integer operators of ai.onnx only",
    "integer": "no float at all between codes, scales neither: for microcontrollers and NPUs",
    "qdq": "canonical QuantizeLinear/DequantizeLinear for OpenVINO, QNN, NNAPI",
}
"""What a model can be folded for."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model to read."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="the model to read: ONNX, or what a framework saved (see export)",
    )


def add_framework(parser: argparse.ArgumentParser) -> None:
    """Add what a framework's own model needs to be read."""
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read a pickle of scikit-learn, which can run any program: only your own",
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="PYTHON",
        help="an interpreter that has the framework (default: $ONNXFOLD_PYTHON, or the one that "
        "runs onnxfold)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add where the result goes."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="where to write the result"
    )


def add_data(parser: argparse.ArgumentParser, more: str = _WITHOUT) -> None:
    """Add what to feed; ``more`` says what becomes of it."""
    parser.add_argument("--data", metavar="DATA", help=_DATA + more)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add where the report goes."""
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write report.json, report.md and report.html there",
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add what may be lost."""
    parser.add_argument(
        "--budget",
        metavar="F",
        help="what may be lost: a rate of changed top-1 answers (0.01), or limits by name "
        "(flips=0.01,sqnr=30,cosine=0.999)",
    )


def add_target(parser: argparse.ArgumentParser, *, default: str | None = "ort") -> None:
    """Add what the integer graph is made of."""
    parser.add_argument(
        "--target",
        choices=tuple(TARGETS),
        default=default,
        help=f"{'; '.join(f'{name}: {text}' for name, text in TARGETS.items())} (default: ort)",
    )


def add_costs(parser: argparse.ArgumentParser) -> None:
    """Add what kernels are chosen by."""
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="costs of kernels that tune measured on the machine of deployment, to choose by "
        "(target ort; default: a table that is built in)",
    )


def add_reduce_range(parser: argparse.ArgumentParser, *, default: bool | None = False) -> None:
    """Add whether weights have 7 bits."""
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        default=default,
        help="give weights 7 bits where x86 machines without VNNI would saturate",
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add plans to replay and to write."""
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="replay the choices of a plan file, unmeasured"
    )
    parser.add_argument(
        "--save-plan",
        type=Path,
        metavar="FILE",
        help="where to write the plan (default: plan.json in the report folder)",
    )
