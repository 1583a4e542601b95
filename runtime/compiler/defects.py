"""What went wrong with a candidate, said in the report: there is a float model to fall back on."""

from __future__ import annotations

from onnxfold.passes.base import Contract
from onnxfold.passes.errors import (
    BrokenContractError,
    InconclusiveError,
    InvalidModelError,
    NotEquivalentError,
    UsageError,
)
from onnxfold.passes.remark import Remark
from onnxfold.runtime.compiler.plan import Plan

OF_THE_USER = (InconclusiveError, InvalidModelError, UsageError)
"""Errors that another candidate would meet as well: no reason to go on."""

_DEFECT = "a defect of onnxfold"
_REPORT_IT = "report it, with the model if you can"


def not_built(failure: tuple[str, Exception]) -> Remark:
    """A candidate, by name, that a pass failed on."""
    name, error = failure
    reason = f"{_DEFECT}: '{name}' could not be built: {_in_words(error)}"
    return _remark(reason, _REPORT_IT)


def not_proven(error: Exception, plan: Plan) -> Remark:
    """A plan whose proof did not hold, or failed."""
    quantized = any(each.contract is Contract.APPROXIMATE for each in plan.passes)
    which = "what was chosen" if quantized else "the optimized float model"
    reason = f"{which} does not hold where it is proven: {_in_words(error)}"
    if _is_defect(error, plan, quantized=quantized):
        return _remark(f"{_DEFECT}: {reason}", _REPORT_IT)
    return _remark(reason, "a wider --budget" if quantized else "onnxfold optimize")


def _is_defect(error: Exception, plan: Plan, *, quantized: bool) -> bool:
    """Whether something failed, or broke a promise that leaves nothing to a budget.

    Float passes may break theirs on badly conditioned models.
    """
    if not isinstance(error, NotEquivalentError):
        return True
    budgeted = {each.name for each in plan.passes if each.contract is Contract.APPROXIMATE}
    broken = isinstance(error, BrokenContractError) and error.pass_name not in budgeted
    return quantized and broken


def _in_words(error: Exception) -> str:
    """Its message; unforeseen errors say little without their kind."""
    foreseen = type(error).__module__.startswith("onnxfold")
    return str(error) if foreseen else f"{type(error).__name__}: {error}"


def _remark(reason: str, advice: str) -> Remark:
    return Remark("compile", "(whole model)", "", reason, advice)
