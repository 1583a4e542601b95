"""Verifies the model before the first pass and after every pass that changed it."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass, PassResult
from onnxfold.passes.errors import InvalidModelError, VerificationError
from onnxfold.passes.interface import Interface
from onnxfold.passes.pipeline import BaseInstrument
from onnxfold.passes.verifier import verify


class VerifyEach(BaseInstrument):
    """Rejects an invalid input model, and a pass that leaves an invalid one.

    Inputs and outputs must stay what they were; an additive pass may append some, and a pass that
    says so may change their types.
    """

    def __init__(self) -> None:
        self._model: ir.Model | None = None
        self._interface: Interface | None = None

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Verify a model that has not been seen yet.

        Raises:
            InvalidModelError: It breaks an invariant.
        """
        if model is self._model:
            return
        try:
            verify(model)
        except VerificationError as error:
            message = f"model '{model.graph.name or ''}' is invalid: {error}"
            raise InvalidModelError(message) from error
        self._model, self._interface = model, Interface.of(model)

    def after_pass(self, pass_: Pass, model: ir.Model, result: PassResult) -> None:
        """Verify what ``pass_`` left, if it changed anything.

        Raises:
            VerificationError: The pass broke an invariant; the message names pass and invariant.
        """
        self._model = model
        if not result.modified:
            return
        additive = pass_.contract is Contract.ADDITIVE
        try:
            is_free = pass_.changes_interface or pass_.restores_interface
            interface = None if is_free else self._interface
            verify(model, interface=interface, additive=additive)
        except VerificationError as error:
            message = f"pass {pass_.name} left an invalid model: {error}"
            raise VerificationError(message, error.detail) from error
        self._interface = Interface.of(model)
