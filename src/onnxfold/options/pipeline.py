"""The options of ``onnxfold opt``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxfold.options.shared import add_data, add_report


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add which passes run, and what watches them."""
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="the model to read")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="where to write the result"
    )
    parser.add_argument("--passes", metavar="PIPELINE", help='"a,b{option=1 list=x,y}"')
    parser.add_argument("--list", action="store_true", help="list the passes and their options")
    add_data(parser)
    parser.add_argument(
        "--no-verify", action="store_true", help="skip the numerical gates (not the structural one)"
    )
    parser.add_argument(
        "--dump", type=Path, metavar="DIR", help="write the model and a diff after each change"
    )
    parser.add_argument(
        "--reproducer",
        type=Path,
        metavar="DIR",
        help="on failure, write the model just before the failing pass and the pipeline there",
    )
    parser.add_argument(
        "--max-rewrites", type=int, metavar="N", help="stop rewriting after N rewrites"
    )
    parser.add_argument(
        "--bisect", action="store_true", help="find the first rewrite that breaks the model"
    )
    add_report(parser)
