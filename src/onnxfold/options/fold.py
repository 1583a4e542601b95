"""The options of ``onnxfold fold``."""

from __future__ import annotations

import argparse

from onnxfold.options.shared import (
    add_budget,
    add_costs,
    add_data,
    add_model,
    add_output,
    add_plan,
    add_reduce_range,
    add_report,
    add_target,
)


def add_fold_options(parser: argparse.ArgumentParser) -> None:
    """Add what says what for, and how it is chosen."""
    add_model(parser)
    add_output(parser)
    add_target(parser)
    add_costs(parser)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time the candidates and the model as it came, and keep the fastest (target ort)",
    )
    parser.add_argument(
        "--relax",
        action="store_true",
        help="do not round activations where that is faster and within the budget (target ort)",
    )
    parser.add_argument(
        "--reference",
        metavar="FLOAT",
        help="the float model it was quantized from, timed as well (with --measure or --relax)",
    )
    add_reduce_range(parser)
    parser.add_argument(
        "--float-biases",
        action="store_true",
        help="write biases as float numbers, as TensorRT wants them (target qdq)",
    )
    add_budget(parser)
    add_plan(parser)
    add_data(parser)
    add_report(parser)
