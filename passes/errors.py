"""Every error onnxfold raises on purpose, with the exit code the command line gives it.

Messages are one line, name the file, node or tensor, and say what to do.
"""

from __future__ import annotations

from typing import ClassVar


class OnnxfoldError(Exception):
    """Base of all errors; ``exit_code`` is what the command line returns for it."""

    exit_code: ClassVar[int] = 4


class NotEquivalentError(OnnxfoldError):
    """A rewritten model does not compute what the original computed (exit code 1)."""

    exit_code = 1


class BrokenContractError(NotEquivalentError):
    """A pass changed the numbers by more than its contract allows.

    Attributes:
        pass_name: The pass.
    """

    def __init__(self, message: str, pass_name: str) -> None:
        super().__init__(message)
        self.pass_name = pass_name


class UsageError(OnnxfoldError):
    """A wrong option, pass name, path or data source (exit code 2)."""

    exit_code = 2


class InvalidModelError(OnnxfoldError):
    """A missing, truncated, invalid or hostile model (exit code 3)."""

    exit_code = 3


class PassError(OnnxfoldError):
    """A pass failed, or left the model in a state the verifier rejects (exit code 4)."""


class VerificationError(PassError):
    """A model breaks an invariant of the IR.

    Attributes:
        detail: The neighbourhood of the failing node as ONNX-like text; may be empty.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class NonConvergenceError(PassError):
    """Rules kept rewriting each other's results; names the rules that do."""


class ExecutionError(OnnxfoldError):
    """ONNX Runtime crashed, refused a model or ran out of time (exit code 4)."""


class InconclusiveError(OnnxfoldError):
    """The evidence does not decide: too few samples, or nothing to compare (exit code 5)."""

    exit_code = 5
