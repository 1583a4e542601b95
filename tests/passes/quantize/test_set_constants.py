"""set-constants: what was tuned goes where it belongs, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import UsageError
from onnxfold.passes.quantize.set_constants import SetConstants
from onnxfold.passes.quantize.tuned_constants import TunedConstants
from onnxfold.passes.registry import parse_passes

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[..., PassResult]

PARAMETERS = """float s = {0.25}, uint8 z = {128}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0},
 int8[2,2] mq = {1, 2, 3, -4}"""
BODY = """q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
 w = DequantizeLinear<axis = 1>(mq, ws, wz) y = MatMul(d, w)"""
CODES = np.array([[2, 2], [3, -5]], np.int8)
SCALES = np.array([0.5, 0.75], np.float32)


def _model(parse: Parse) -> ir.Model:
    model = parse(f"g (float[A,2] x) => (float[A,2] y) <{PARAMETERS}> {{ {BODY} }}")
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def _read(model: ir.Model, node: str, index: int) -> object:
    found = next(each for each in model.graph if each.name == node)
    array = constant_array(found.inputs[index])
    assert array is not None
    return array.tolist()


def test_constants_are_written(parse: Parse, apply_pass: Apply) -> None:
    constants = TunedConstants({("make_w", 0): CODES, ("make_w", 1): SCALES})
    result = apply_pass(SetConstants(constants), _model(parse))
    assert _read(result.model, "make_w", 0) == CODES.tolist()
    assert _read(result.model, "make_w", 1) == SCALES.tolist()
    assert result.rules == {"set-constant": 2}
    assert len(result.model.graph.initializers) == 5


def test_a_shared_constant_changes_for_one_reader_only(parse: Parse, apply_pass: Apply) -> None:
    one = TunedConstants({("make_d", 1): np.array(0.5, np.float32)})
    result = apply_pass(SetConstants(one), _model(parse))
    assert _read(result.model, "make_d", 1) == 0.5
    assert _read(result.model, "make_q", 1) == 0.25


def test_the_same_constants_change_nothing(parse: Parse, apply_pass: Apply) -> None:
    same = TunedConstants({("make_w", 0): np.array([[1, 2], [3, -4]], np.int8)})
    assert not apply_pass(SetConstants(same), _model(parse)).modified


@pytest.mark.parametrize(
    ("place", "array", "words"),
    [
        (("make_v", 0), CODES, "no node 'make_v'; did you mean 'make_y'"),
        (("make_w", 0), CODES[:1], "input 0 of node 'make_w' is another's"),
        (("make_w", 5), CODES, "input 5 of node 'make_w' is another's"),
        (("make_w", 0), CODES.astype(np.int32) * 100, "input 0 of node 'make_w' is another's"),
        (("make_q", 0), CODES, "input 0 of node 'make_q' is another's"),
    ],
)
def test_constants_of_another_model(
    parse: Parse, place: tuple[str, int], array: Array, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        SetConstants(TunedConstants({place: array})).run(_model(parse))


def test_constants_survive_a_file(parse: Parse, tmp_path: Path) -> None:
    constants = TunedConstants({("make_w", 1): SCALES, ("make_w", 0): CODES})
    saved = constants.save(tmp_path / "tuned.npz")
    assert TunedConstants.load(tmp_path / "tuned.npz") == saved == constants
    (found,) = parse_passes(f"set-constants{{constants={saved.to_text()}}}")
    assert found == SetConstants(constants)
    model = found.run(_model(parse)).model
    assert _read(model, "make_w", 0) == CODES.tolist()


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file; tune the model first"):
        TunedConstants.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("codes")
    with pytest.raises(UsageError, match="not a file of tuned constants"):
        TunedConstants.load(tmp_path / "text.npz")
    with pytest.raises(UsageError, match="save them to an"):
        TunedConstants({}).to_text()
    with pytest.raises(UsageError, match="node 'a', input 1, is of type float64"):
        TunedConstants({("a", 1): np.zeros(1)})
