"""The options of ``onnxfold loss``, and of the commands that measure by losses."""

from __future__ import annotations

import argparse

from onnxfold.options.shared import add_data, add_model, add_output, add_report

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adagrad")
"""What a training graph can step with."""


def add_loss_choice(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add what says which losses are meant, and what they are about."""
    parser.add_argument(
        "--loss",
        action="append",
        default=None if required else [],
        required=required,
        metavar="LOSS",
        help='a loss with its options, like mse or "sparse-softmax-cross-entropy'
        '{ignore-index=0}", or FILE.py:FUNCTION; may be given several times',
    )
    parser.add_argument(
        "--on",
        nargs="+",
        default=(),
        metavar="TENSOR",
        help="outputs, or tensors inside, that the losses are about (default: the only output of "
        "real numbers, or the logits before its softmax)",
    )
    parser.add_argument(
        "--labels",
        default="labels",
        metavar="NAME",
        help="name of the input, and in the data, of the right answers (default: labels)",
    )


def add_loss_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which losses go into a model, and what becomes of them."""
    add_model(parser)
    add_output(parser)
    add_loss_choice(parser, required=True)
    parser.add_argument(
        "--weight",
        nargs="+",
        type=float,
        default=(),
        metavar="W",
        help="the share of each loss in their sum (default: 1)",
    )
    parser.add_argument(
        "--grad",
        nargs="*",
        metavar="TENSOR",
        help="add the gradients of the loss by weights, by inputs, or by tensors that match a "
        "regular expression (default: weights)",
    )
    parser.add_argument(
        "--train",
        metavar="OPTIMIZER",
        help=f"add one step of an optimizer, {', '.join(OPTIMIZERS)}, with options in braces like "
        '"adam{learning-rate=0.01 clip-norm=1}"',
    )
    parser.add_argument(
        "--trainable",
        nargs="+",
        default=(),
        metavar="REGEX",
        help="the weights to train, by name (default: all)",
    )
    add_data(parser)
    add_report(parser)
