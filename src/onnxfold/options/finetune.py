"""The options of ``onnxfold finetune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxfold.options.shared import (
    add_budget,
    add_data,
    add_model,
    add_output,
    add_report,
)


def add_finetune_options(parser: argparse.ArgumentParser) -> None:
    """Add what says what a model is to stay near to, and how carefully."""
    add_model(parser)
    add_output(parser)
    add_data(parser, "; half of it is learned from, the other half judges")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FLOAT",
        help="the float model that the outputs are to stay near to; needs no labels",
    )
    parser.add_argument(
        "--loss",
        action="append",
        default=[],
        metavar="LOSS",
        help="what is to fall instead: a loss with its options, as for onnxfold loss; the data "
        "holds the labels",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=300,
        metavar="N",
        help="steps at most; large models get fewer (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=0.01,
        metavar="R",
        help="how far a step moves a code at first, in codes (default: %(default)s)",
    )
    parser.add_argument(
        "--activations", action="store_true", help="let scales of activations move too"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="decides the order of samples"
    )
    add_budget(parser)
    add_report(parser)
