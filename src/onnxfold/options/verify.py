"""The options of ``onnxfold verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxfold.options.loss import add_loss_choice
from onnxfold.options.shared import add_budget, add_data, add_report

VERDICTS = ("text", "json", "junit", "sarif", "markdown", "html")
"""How a verdict can be printed; named here since what prints it takes a second to import."""


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """Add what is compared, on what, and by which promise."""
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="the original model")
    parser.add_argument("candidate", type=Path, metavar="CANDIDATE", help="the rewritten model")
    add_data(parser)
    parser.add_argument(
        "--contract",
        choices=("exact", "reassociated", "integer", "approximate", "additive"),
        default=None,
        help="what the candidate promises (default: approximate with --budget, integer where the "
        "candidate is what fold made of the reference, else reassociated)",
    )
    add_budget(parser)
    parser.add_argument(
        "--adversarial",
        type=int,
        nargs="?",
        const=40,
        metavar="STEPS",
        help="search for the input on which the two differ most, inside the ranges of the data, "
        "and hold the contract there too (default: 40 steps)",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="write that input there, as data to verify on"
    )
    add_loss_choice(parser)
    parser.add_argument(
        "--format",
        choices=VERDICTS,
        default="text",
        help="how to print the verdict (default: text); junit and sarif are what continuous "
        "integration and code hosts read",
    )
    add_report(parser)
