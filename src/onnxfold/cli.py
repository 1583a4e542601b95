"""The command line: arguments in, exit code out. The work is in ``onnxfold.commands``."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from onnxfold._version import __version__
from onnxfold.console import print_error
from onnxfold.finetune_options import add_finetune_options
from onnxfold.loss_options import add_loss_choice, add_loss_options
from onnxfold.passes.errors import OnnxfoldError, UsageError
from onnxfold.passes.suggest import did_you_mean

_INTERNAL_ERROR = 4
_INTERRUPTED = 130
_BROKEN_PIPE = 141

_EXIT_CODES = (
    "exit codes: 0 pass, 1 not equivalent, 2 usage, 3 invalid or hostile model, "
    "4 crash or time-out, 5 inconclusive"
)
_DATA_HELP = (
    "inputs: FILE.npz (one array per input, first axis = samples), a folder of .npz (one feed a "
    "file), ONNX test_data_set_* folders, FILE.parquet, or FILE.py:function yielding dicts of "
    "arrays"
)
_WITHOUT_DATA = "; without it inputs are generated, and the report says so"

TARGETS = {
    "ort": "integer operators of ONNX Runtime (com.microsoft allowed)",
    "standard": "integer operators of ai.onnx only",
    "integer": "no float at all between codes, scales neither: for microcontrollers and NPUs",
    "qdq": "canonical QuantizeLinear/DequantizeLinear for OpenVINO, QNN, NNAPI",
}
"""What a model can be folded for."""

MODES = {
    "dynamic-range": "products and LSTMs on int8, with ranges taken at every run",
    "full-integer": "int8 throughout, inputs and outputs too",
    "16x8": "int16 activations, int8 weights, as Q/DQ",
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

KINDS = (
    *("savedmodel", "keras", "keras-h5", "tflite", "frozen-graph", "tfjs-layers", "tfjs-graph"),
    *("torch-export", "torchscript", "pickle"),
)
"""What can be exported."""

CALIBRATIONS = (
    *("search", "min-max", "moving-average", "percentile", "standard-deviation"),
    *("winsorized", "entropy", "mse", "auto"),
)
"""How activation ranges can be found."""


class _Parser(argparse.ArgumentParser):
    """Reports errors as every other error: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; ``sys.argv`` by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _run(words)
    except OnnxfoldError as error:
        if debug:
            raise
        print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        print_error("interrupted; no half-written file is left")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has gone: nothing must be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:
        if debug:
            raise
        print_error(f"internal error: {type(error).__name__}: {error} (--debug shows where)")
        return _INTERNAL_ERROR


def _run(words: list[str]) -> int:
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in _COMMANDS:
        raise UsageError(f"no command '{first}'{did_you_mean(first, _COMMANDS)}")
    parser = build_parser()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise UsageError(_unknown(unknown[0], options.command))
    if options.command is None:
        parser.print_help()
        return UsageError.exit_code
    # Errors arrive as exceptions, in one line; onnx_ir also logs them.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    # Imported late, so that --help and usage errors answer at once.
    from onnxfold import commands

    return getattr(commands, options.command)(options)


def _unknown(word: str, command: str | None) -> str:
    prog = f"onnxfold {command}" if command else "onnxfold"
    if not word.startswith("-"):
        return f"one argument too many: '{word}' (see {prog} --help)"
    known = ["--help", "--version"]
    if command is not None:
        probe = argparse.ArgumentParser()
        _configure(probe, command)
        known = re.findall(r"--[a-z-]+", probe.format_usage())
    name = word.partition("=")[0]
    return f"no option '{name}'{did_you_mean(name, known)} (see {prog} --help)"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="onnxfold",
        description="ONNX graph rewriting that can be trusted: every result comes with evidence.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"onnxfold {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (summary, _) in _COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, description=summary, epilog=_EXIT_CODES)
        _configure(command, name)
    return parser


def _configure(parser: argparse.ArgumentParser, command: str) -> None:
    _, configure = _COMMANDS[command]
    configure(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the ONNX model to read")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="where to write the result"
    )


def _data(parser: argparse.ArgumentParser, more: str = _WITHOUT_DATA) -> None:
    parser.add_argument("--data", metavar="DATA", help=_DATA_HELP + more)


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.json and report.md there"
    )


def _budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        metavar="F",
        help="what may be lost: a rate of changed top-1 answers (0.01), or limits by name "
        "(flips=0.01,sqnr=30,cosine=0.999)",
    )


def _target(parser: argparse.ArgumentParser, *, default: str | None = "ort") -> None:
    parser.add_argument(
        "--target",
        choices=tuple(TARGETS),
        default=default,
        help=f"{'; '.join(f'{name}: {text}' for name, text in TARGETS.items())} (default: ort)",
    )


def _costs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="costs of kernels that tune measured on the machine of deployment, to choose by "
        "(target ort; default: a table that is built in)",
    )


def _reduce_range(parser: argparse.ArgumentParser, *, default: bool | None = False) -> None:
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        default=default,
        help="give weights 7 bits where x86 machines without VNNI would saturate",
    )


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="replay the choices of a plan file, unmeasured"
    )
    parser.add_argument(
        "--save-plan",
        type=Path,
        metavar="FILE",
        help="where to write the plan (default: plan.json in the report folder)",
    )


def _compile(parser: argparse.ArgumentParser) -> None:
    # What is not given is None: a configuration file may say it.
    _model(parser)
    _output(parser)
    _data(parser, "; half of it calibrates, the other half judges; with --plan it may be left out")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a TOML file of these options and of exceptions by operator, name or regular "
        "expression; what the command line says goes before",
    )
    _target(parser, default=None)
    parser.add_argument(
        "--mode",
        choices=tuple(MODES),
        help=f"{'; '.join(f'{name}: {text}' for name, text in MODES.items())} (default: what is "
        "fastest within the budget)",
    )
    _budget(parser)
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
    _reduce_range(parser, default=None)
    _costs(parser)
    _plan(parser)
    _report(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        metavar="SOURCE",
        help="a SavedModel or TensorFlow.js folder, a .keras, .h5, .tflite or frozen .pb, "
        "a .pt2 or TorchScript, or a pickle of scikit-learn",
    )
    _output(parser)
    parser.add_argument(
        "--from",
        dest="kind",
        default="auto",
        metavar="KIND",
        help=f"what SOURCE is: {', '.join(KINDS)} (default: look inside)",
    )
    _data(parser, "; run in the framework too; without it inputs are generated")
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
        help="leave the first dimension open where the source fixed it (PyTorch)",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read a pickle of scikit-learn, which can run any program: only your own",
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="PYTHON",
        help="an interpreter that has the framework (default: the one that runs onnxfold)",
    )
    _report(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
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


def _fold(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _output(parser)
    _target(parser)
    _costs(parser)
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
    _reduce_range(parser)
    parser.add_argument(
        "--float-biases",
        action="store_true",
        help="write biases as float numbers, as TensorRT wants them (target qdq)",
    )
    _budget(parser)
    _plan(parser)
    _data(parser)
    _report(parser)


def _tune(parser: argparse.ArgumentParser) -> None:
    _output(parser)


def _optimize(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _output(parser)
    _data(parser)
    _report(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="the original model")
    parser.add_argument("candidate", type=Path, metavar="CANDIDATE", help="the rewritten model")
    _data(parser)
    parser.add_argument(
        "--contract",
        choices=("exact", "reassociated", "integer", "approximate", "additive"),
        default=None,
        help="what the candidate promises (default: approximate with --budget, integer where the "
        "candidate is what fold made of the reference, else reassociated)",
    )
    _budget(parser)
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
        choices=("text", "json", "markdown"),
        default="text",
        help="how to print the verdict (default: text)",
    )
    _report(parser)


def _opt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="the model to read")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="where to write the result"
    )
    parser.add_argument("--passes", metavar="PIPELINE", help='"a,b{option=1 list=x,y}"')
    parser.add_argument("--list", action="store_true", help="list the passes and their options")
    _data(parser)
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
    _report(parser)


def _loss(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _output(parser)
    add_loss_options(parser)
    _data(parser)
    _report(parser)


def _finetune(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _output(parser)
    _data(parser, "; half of it is learned from, the other half judges")
    add_finetune_options(parser)
    _budget(parser)
    _report(parser)


def _explain(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _target(parser)
    _data(parser)


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "compile": ("quantize a float model to integers, keep what is faster, prove it", _compile),
    "export": ("turn a framework's model into ONNX, proven against the framework", _export),
    "doctor": ("what is installed to export with, and what to install", _doctor),
    "fold": ("fold an already fake-quantized model to integer arithmetic", _fold),
    "finetune": ("tune the constants of a fake-quantized model by gradients", _finetune),
    "tune": ("measure kernels on this machine, for --costs of fold and compile", _tune),
    "optimize": ("simplify and fuse a float model", _optimize),
    "loss": ("add losses, and their gradients or an optimizer, to a model", _loss),
    "verify": ("compare two models", _verify),
    "opt": ("run a textual pipeline of passes", _opt),
    "explain": ("what is in a model, what stays in float and why, what it costs", _explain),
}
