"""The options of ``onnxfold export`` and ``onnxfold doctor``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxfold.options.shared import add_data, add_framework, add_output, add_report

KINDS = (
    *("savedmodel", "keras", "keras-h5", "tflite", "frozen-graph", "tfjs-layers", "tfjs-graph"),
    *("torch-export", "torchscript", "pickle"),
)
"""What can be exported."""


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add what says what a source is, and how it becomes ONNX."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="SOURCE",
        help="a SavedModel or TensorFlow.js folder, a .keras, .h5, .tflite or frozen .pb, "
        "a .pt2 or TorchScript, or a pickle of scikit-learn",
    )
    add_output(parser)
    parser.add_argument(
        "--from",
        dest="kind",
        default="auto",
        metavar="KIND",
        help=f"what SOURCE is: {', '.join(KINDS)} (default: look inside)",
    )
    add_data(parser, "; run in the framework too; without it inputs are generated")
    parser.add_argument(
        "--opset", type=int, default=18, metavar="N", help="of ai.onnx to write (default: 18)"
    )
    parser.add_argument(
        "--signature", metavar="NAME", help="of a SavedModel (default: serving_default)"
    )
    parser.add_argument(
        "--input",
        action="append",
        dest="inputs",
        metavar="NAME=SHAPE",
        help="shape of an input of TorchScript: x=1x3x224x224, or with a type, ids=int64:1x16",
    )
    parser.add_argument(
        "--dynamic-batch",
        action="store_true",
        help="leave the first dimension open where the source fixed it; proven with several "
        "samples at once",
    )
    unused = parser.add_mutually_exclusive_group()
    unused.add_argument(
        "--keep-unused-inputs",
        action="store_true",
        default=True,
        help="take all inputs that the framework takes, also what nothing reads (the default)",
    )
    unused.add_argument(
        "--drop-unused-inputs",
        dest="keep_unused_inputs",
        action="store_false",
        help="leave out inputs that nothing reads",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="show how far every layer is from the framework's (a failed proof names the first "
        "layer that differs in any case)",
    )
    add_framework(parser)
    add_report(parser)


def add_doctor_options(parser: argparse.ArgumentParser) -> None:
    """Add what says where to look for what."""
    parser.add_argument(
        "frameworks",
        nargs="*",
        metavar="FRAMEWORK",
        help="tensorflow, torch or sklearn: exit code 2 if it cannot export (default: show all)",
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="PYTHON",
        help="the interpreter to look into (default: $ONNXFOLD_PYTHON, or the one that runs this)",
    )
