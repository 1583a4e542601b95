"""The options of ``onnxfold compile``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxfold.options.loss import add_loss_choice
from onnxfold.options.shared import (
    add_budget,
    add_costs,
    add_data,
    add_framework,
    add_model,
    add_output,
    add_plan,
    add_reduce_range,
    add_report,
    add_target,
)

MODES = {
    "dynamic-range": "products and LSTMs on int8, with ranges taken at every run",
    "full-integer": "int8 throughout, inputs and outputs too",
    "16x8": "int16 activations, int8 weights, as Q/DQ; for standard and integer folded",
    "float16": "weights stored in float16",
    "int4-weights": "weights of products in 4 bits, rounded by what they do to the outputs",
}
"""The modes that TensorFlow Lite has, by its names, and one more."""

PRESETS = {
    "fast": "tries for accuracy what the budget needs",
    "balanced": "every compensation that takes seconds, others as the budget needs them",
    "best": "everything that may bring the result nearer to float",
}
"""How much is tried for accuracy."""

ACTIVATIONS = ("u8", "s8", "u16", "s16")
WEIGHTS = ("s8", "u8", "s4", "u4", "s16")
"""Types that values can be quantized to."""

CALIBRATIONS = (
    *("search", "min-max", "moving-average", "percentile", "standard-deviation"),
    *("winsorized", "entropy", "mse", "auto"),
)
"""How activation ranges can be found."""


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """Add what says what may be lost, and what is tried; all of it may stand in a file."""
    # What is not given is None: a configuration file may say it.
    add_model(parser)
    add_output(parser)
    add_data(
        parser, "; half of it calibrates, the other half judges; with --plan it may be left out"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a TOML file of these options and of exceptions by operator, name or regular "
        "expression; what the command line says goes before",
    )
    add_target(parser, default=None)
    parser.add_argument(
        "--mode",
        choices=tuple(MODES),
        help=f"{'; '.join(f'{name}: {text}' for name, text in MODES.items())} (default: what is "
        "fastest within the budget)",
    )
    add_budget(parser)
    parser.add_argument(
        "--metric",
        metavar="FILE.py:FUNCTION",
        help="what is measured by: a function of pairs of outputs and samples that returns a "
        "number, more is better; the rate in --budget is the share of it that may be lost",
    )
    add_loss_choice(parser)
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help=f"{'; '.join(f'{name}: {text}' for name, text in PRESETS.items())} "
        "(default: balanced)",
    )
    parser.add_argument(
        "--calibration",
        metavar="METHOD",
        help=f"how activation ranges are found: {', '.join(CALIBRATIONS)}; options in braces, like "
        "percentile{percentile=99.9} (default: search, the nearest of several)",
    )
    parser.add_argument(
        "--calibration-cache",
        type=Path,
        metavar="FILE",
        help="a .json or .npz that keeps the ranges for the next compilation of the same model "
        "with the same data",
    )
    parser.add_argument(
        "--keep-slower",
        action="store_true",
        default=None,
        help="quantize everything that can be, even where it makes the model slower",
    )
    parser.add_argument(
        "--activations", choices=ACTIVATIONS, help="codes of activations (default: u8)"
    )
    parser.add_argument("--weights", choices=WEIGHTS, help="codes of weights (default: s8)")
    parser.add_argument(
        "--op-types", nargs="+", metavar="OP", help="operators that may be quantized (default: all)"
    )
    parser.add_argument("--skip", nargs="+", metavar="NODE", help="nodes to leave in float")
    add_reduce_range(parser, default=None)
    add_costs(parser)
    add_plan(parser)
    add_framework(parser)
    add_report(parser)
