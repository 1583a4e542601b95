"""The command line: arguments in, exit code out. The work is in ``onnxfold.commands``."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from onnxfold._version import __version__
from onnxfold.console import print_error
from onnxfold.options.compile import add_compile_options
from onnxfold.options.export import add_doctor_options, add_export_options
from onnxfold.options.finetune import add_finetune_options
from onnxfold.options.fold import add_fold_options
from onnxfold.options.loss import add_loss_options
from onnxfold.options.pipeline import add_pipeline_options
from onnxfold.options.shared import add_data, add_model, add_output, add_report, add_target
from onnxfold.options.verify import add_verify_options
from onnxfold.passes.errors import OnnxfoldError, UsageError
from onnxfold.passes.suggest import did_you_mean

_INTERNAL_ERROR = 4
_INTERRUPTED = 130
_BROKEN_PIPE = 141

_EXIT_CODES = (
    "exit codes: 0 pass, 1 not equivalent, 2 usage, 3 invalid or hostile model, "
    "4 crash or time-out, 5 inconclusive"
)


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


def _tune(parser: argparse.ArgumentParser) -> None:
    add_output(parser)


def _optimize(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output(parser)
    add_data(parser)
    add_report(parser)


def _explain(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_target(parser)
    add_data(parser)


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "compile": (
        "quantize a float model to integers, keep what is faster, prove it",
        add_compile_options,
    ),
    "export": (
        "turn a framework's model into ONNX, proven against the framework",
        add_export_options,
    ),
    "doctor": ("what is installed to export with, and what to install", add_doctor_options),
    "fold": ("fold an already fake-quantized model to integer arithmetic", add_fold_options),
    "finetune": ("tune the constants of a fake-quantized model by gradients", add_finetune_options),
    "tune": ("measure kernels on this machine, for --costs of fold and compile", _tune),
    "optimize": ("simplify and fuse a float model", _optimize),
    "loss": ("add losses, and their gradients or an optimizer, to a model", add_loss_options),
    "verify": ("compare two models", add_verify_options),
    "opt": ("run a textual pipeline of passes", add_pipeline_options),
    "explain": ("what is in a model, what stays in float and why, what it costs", _explain),
}
