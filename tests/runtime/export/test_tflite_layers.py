from __future__ import annotations

from typing import Any

import pytest

from onnxfold.runtime.export.workers.protocol import FrontEndError
from onnxfold.runtime.export.workers.tflite_layers import refuse_variables


class Interpreter:
    """What an interpreter says of its operators."""

    def __init__(self, *kinds: str) -> None:
        self._kinds = kinds

    def _get_ops_details(self) -> list[dict[str, Any]]:
        return [{"op_name": each} for each in self._kinds]


def test_state_in_variables_is_refused_by_name() -> None:
    """A streaming wake word keeps a ring of frames so."""
    streaming = Interpreter("CALL_ONCE", "VAR_HANDLE", "CONV_2D", "VAR_HANDLE")
    with pytest.raises(FrontEndError, match=r"in variables \(CALL_ONCE, VAR_HANDLE\)") as caught:
        refuse_variables(streaming)
    assert caught.value.fault == "unsupported"
    refuse_variables(Interpreter("CONV_2D", "RESHAPE"))
